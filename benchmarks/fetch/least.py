"""What fetching takes of the cores at least: preparing and serving images, and only asking.

The client here opens connections, writes requests and reads bodies. It knows no robots.txt, no
limits, no guard and no fault of a server: what ours takes beside it is for those, and for Python.
"""

import asyncio
import time
from urllib.parse import urlsplit

import psutil

from benchmarks.fetch.limit import preparing_seconds

CONNECTIONS = 1024
PIECE = 64 * 1024


def least_core_ms(urls: list[str], files: list[bytes], server: int) -> dict[str, float]:
    """Returns milliseconds of a core that an image takes, by who needs them.

    Args:
        urls: of images, none at a host that hangs.
        files: the images.
        server: its process.
    """
    served, asked = _seconds_of(server), time.process_time()
    asyncio.run(_ask_all(urls))
    asked = time.process_time() - asked
    served = _seconds_of(server) - served
    return {
        "preparing": 1000 * preparing_seconds(files, 3),
        "serving": 1000 * served / len(urls),
        "asking": 1000 * asked / len(urls),
    }


def _seconds_of(process: int) -> float:
    spent = psutil.Process(process).cpu_times()
    return float(spent.user + spent.system)


async def _ask_all(urls: list[str]) -> None:
    """Asks for all URLs, over as many connections as ours has at its defaults."""
    hosts: dict[str, list[str]] = {}
    for url in urls:
        hosts.setdefault(urlsplit(url).netloc, []).append(url)
    each = max(1, CONNECTIONS // len(hosts))
    await asyncio.gather(
        *(_ask(one[first::each]) for one in hosts.values() for first in range(each))
    )


async def _ask(urls: list[str]) -> None:
    """Asks for URLs of one host, one after another over one connection."""
    if not urls:
        return
    place = urlsplit(urls[0])
    reader, writer = await asyncio.open_connection(place.hostname, place.port, limit=4 * PIECE)
    for url in urls:
        writer.write(f"GET {urlsplit(url).path} HTTP/1.1\r\nHost: {place.netloc}\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        left = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        while left:
            left -= len(await reader.read(min(left, PIECE)))
    writer.close()
    await writer.wait_closed()
