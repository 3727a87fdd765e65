"""How many odd URLs and odd answers are kept: by ours, by curl and by img2dataset's downloader.

    python -m benchmarks.fetch.odd

The URLs and answers are those of the tests. A URL counts as kept if the server, which knows each
under its one spelling, gave its picture for it; it takes seconds and a local server alone.
"""

import asyncio
import subprocess
import tempfile
from pathlib import Path

import cv2
import numpy as np

from pipeline.config import FetchConfig
from pipeline.fetch.hosts.memory import HostMemory
from pipeline.fetch.http.download import Downloader
from pipeline.fetch.img2dataset.engine import PeerImage, download_with_img2dataset
from schemas.errors import SampleRejected
from tests.hostile_urls import IMAGE
from tests.odd_urls import odd_urls
from tests.pipeline.fetch.http.test_heads import TAKEN
from tests.web_server import ALLOWED_HOST, WebServer

PICTURE = cv2.imencode(".jpg", np.zeros((64, 64, 3), np.uint8))[1].tobytes().ljust(len(IMAGE))
"""A picture as long as the bytes that stand for one in the tests."""


def settings(server: WebServer) -> FetchConfig:
    """Returns what lets both downloaders ask the server, and no robots.txt."""
    return FetchConfig(
        allow_networks=(f"{ALLOWED_HOST}/32",),
        allow_ports=(server.port,),
        respects_robots=False,
        respects_tdm=False,
        retries=0,
        timeout_seconds=5,
        connections=8,
    )


async def kept_by_ours(server: WebServer, urls: list[str]) -> int:
    """Returns how many URLs brought the picture."""
    config, kept = settings(server), 0
    downloader = Downloader(config, HostMemory(config))
    for url in urls:
        try:
            body = await downloader.download(url)
        except SampleRejected:
            continue
        downloader.release(body)
        kept += bytes(body).startswith(PICTURE[:100])
    await downloader.close()
    return kept


def kept_by_curl(urls: list[str]) -> int:
    """Returns how many URLs brought the picture."""
    command = ["curl", "-sgfL", "--max-time", "5", "--"]
    found = [subprocess.run([*command, url], capture_output=True, check=False) for url in urls]
    return sum(one.returncode == 0 and one.stdout.startswith(PICTURE[:100]) for one in found)


def kept_by_img2dataset(server: WebServer, urls: list[str]) -> int:
    """Returns how many URLs brought the picture."""
    with tempfile.TemporaryDirectory() as folder:
        asked = [(url, None) for url in urls]
        answers = download_with_img2dataset(asked, settings(server), Path(folder))
    return sum(isinstance(answer, PeerImage) for answer in answers)


def main() -> None:
    """Asks and prints."""
    server = WebServer().start()
    urls = odd_urls(server)
    for target in urls.values():
        server.serve(target, PICTURE)
    answers = {
        server.raw(f"/answer/{number}", answer.replace(IMAGE, PICTURE))
        for number, answer in enumerate(TAKEN.values())
        if IMAGE in answer
    }
    for name, asked in (("odd URLs", list(urls)), ("odd answers", sorted(answers))):
        ours = asyncio.run(kept_by_ours(server, asked))
        curl, peer = kept_by_curl(asked), kept_by_img2dataset(server, asked)
        print(f"{name}: {len(asked)}, kept: ours {ours}, curl {curl}, img2dataset {peer}")


if __name__ == "__main__":
    main()
