"""A soak of the fetch stage: 50,000 URLs, a fifth of them faulty, and the memory that it takes.

    python benchmarks/soak.py --plot docs/soak.png
    python benchmarks/soak.py --quick

A server of its own plays the faults: statuses, pages, cut and garbled answers, bombs, redirects to
where nobody may go, opt-outs, drips, silence, refused connections, names that do not exist. The
memory is what the job and all its processes hold that no file backs, once a second; its slope is
that of a line through the samples after the first fifth of the URLs. Ends with status 1 unless
every sound URL is kept, every faulty one is rejected, the counts balance, and the slope is at most
20 MB in 10,000 URLs. A slope needs 10,000 URLs: of fewer, the start and the end are most, and it is
printed only.
"""

import argparse
import asyncio
import csv
import io
import json
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))

from pipeline.dataset.progress import ProgressReader
from pipeline.report.balance import check_balance, count_stages
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from tests.web_server import Request, WebServer, response, unused_port

CORPUS = Path(__file__).parent.parent / "examples" / "corpus"
COMMAND = Path(sys.executable).parent / "aligngpt-curate"

FAULTY_EVERY = 5
SOUND_HOSTS = 200
HOSTS_PER_FAULT = 50
MAX_SLOPE_MB = 20.0
"""Growth of memory in 10,000 URLs above which the soak fails."""

JUDGED_URLS = 10_000
"""URLs from which on the slope is judged."""

WARM_RATIO = 0.2
"""Share of the URLs after which the memory is expected to be flat."""

FAULTS = (
    "gone",
    "broken",
    "busy",
    "page",
    "svg",
    "empty",
    "half",
    "short",
    "silent_close",
    "garbage",
    "chunks",
    "loop",
    "to_private",
    "to_file",
    "gzip_bomb",
    "pixel_bomb",
    "elongated",
    "noai",
    "tdm",
    "drip",
    "hang",
    "refused",
    "no_such_name",
    "private",
    "port",
)
"""Faults in turn; the last four need no server."""


def png(width: int, height: int) -> bytes:
    """Returns a PNG whose header says this size and whose pixels end early if they are many."""
    file = io.BytesIO()
    Image.new("L", (min(width, 4000), min(height, 4000)), 200).save(file, "PNG")
    data = bytearray(file.getvalue())
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def pictures() -> list[bytes]:
    """Returns the stamps of the bundled corpus as PNG."""
    with (CORPUS / "pairs.tsv").open(newline="", encoding="utf-8") as file:
        return [(CORPUS / row["file"]).read_bytes() for row in csv.DictReader(file, delimiter="\t")]


class FaultySite(WebServer):
    """Answers `/sound/7` with a picture, and `/fault/7` as the fault's name says."""

    def prepare(self) -> "FaultySite":
        """Makes the answers."""
        self._pictures = pictures()
        picture = self._pictures[0]
        bomb = zlib.compressobj(9, zlib.DEFLATED, 31)
        zeros = bytes(1 << 20)
        zipped = b"".join(bomb.compress(zeros) for _ in range(128)) + bomb.flush()
        start = b"HTTP/1.1 200 OK\r\n"
        chunked = start + b"Transfer-Encoding: chunked\r\n\r\n"
        self._answers = {
            "gone": response(b"gone", status=404),
            "broken": response(b"broken", status=500),
            "busy": response(b"busy", {"Retry-After": "3600"}, 429),
            "page": response(b"<!doctype html><p>no picture"),
            "svg": response(b'<svg xmlns="http://www.w3.org/2000/svg"/>'),
            "empty": response(b""),
            "half": response(picture[: len(picture) // 2]),
            "chunks": chunked + b"zz\r\nno length\r\n",
            "garbage": b"\x00\xff\xfe this is no HTTP\r\n\r\n",
            "to_private": response(b"", {"Location": "http://192.168.0.1/x.png"}, 302),
            "to_file": response(b"", {"Location": "file:///etc/passwd"}, 301),
            "gzip_bomb": response(zipped, {"Content-Encoding": "gzip"}),
            "pixel_bomb": response(png(60_000, 60_000)),
            "elongated": response(png(3000, 3)),
            "noai": response(picture, {"X-Robots-Tag": "noai"}),
            "tdm": response(picture, {"TDM-Reservation": "1"}),
        }
        self._closing = {"chunks", "garbage"}
        self._short = response(picture[:200], {"Content-Length": str(len(picture))})
        return self

    async def _answer(self, request: Request, writer: asyncio.StreamWriter) -> None:
        self.requests.clear()
        kind, _, number = request.path.strip("/").partition("/")
        if kind == "sound":
            writer.write(response(self._pictures[int(number) % len(self._pictures)]))
        elif kind in self._answers:
            writer.write(self._answers[kind])
        elif kind == "loop":
            writer.write(response(b"", {"Location": f"/loop/{int(number) + 1}"}, 302))
        elif kind == "drip":
            for byte in response(self._pictures[0]):
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(1)
        elif kind == "hang":
            await asyncio.sleep(60)
        elif kind == "short":
            writer.write(self._short)
        elif kind != "silent_close":
            writer.write(response(b"nothing here", status=404))
        if kind in ("short", "silent_close", *self._closing):
            await writer.drain()
            writer.close()


def serve() -> None:
    """Serves until the parent ends this process; prints the port."""
    site = FaultySite(hosts=("0.0.0.0",)).prepare().start()
    print(site.port, flush=True)
    while True:
        time.sleep(3600)


def url_of(number: int, port: int, closed_port: int) -> tuple[str, str | None]:
    """Returns a URL, and its fault if it has one. Every fault has hosts of its own."""
    if number % FAULTY_EVERY:
        return f"http://127.1.0.{1 + number % SOUND_HOSTS}:{port}/sound/{number}", None
    place = number // FAULTY_EVERY
    fault = FAULTS[place % len(FAULTS)]
    turn = place // len(FAULTS)
    host = f"127.{10 + place % len(FAULTS)}.0.{1 + turn % HOSTS_PER_FAULT}"
    return {
        "refused": f"http://{host}:{closed_port}/{number}",
        "no_such_name": f"http://host-{number}.invalid/{number}",
        "private": f"http://10.0.{number % 250}.1/{number}",
        "port": f"http://{host}:22/{number}",
    }.get(fault, f"http://{host}:{port}/{fault}/{number}"), fault


def write_pairs(path: Path, count: int, port: int) -> dict[str, str]:
    """Writes the list of URLs; returns the fault of each that has one."""
    faults = {}
    closed_port = unused_port("127.0.0.1")
    with path.open("w") as file:
        file.write("url\tcaption\n")
        for number in range(count):
            url, fault = url_of(number, port, closed_port)
            file.write(f"{url}\tpicture {number}\n")
            if fault is not None:
                faults[url] = fault
    ports = f"80 {port} {closed_port}"
    (path.parent / "ports").write_text(ports)
    return faults


def command(pairs: Path, root: Path, per_shard: int) -> list[str]:
    """Returns the words of the job."""
    ports = (pairs.parent / "ports").read_text().split()
    return [
        str(COMMAND),
        *("fetch", "--pairs", str(pairs), "--out", str(root)),
        *("--read.pairs-per-shard", str(per_shard), "--fetch.connections", "128"),
        *("--fetch.timeout-seconds", "10", "--fetch.retries", "1"),
        *("--fetch.allow-networks", "127.0.0.0/8", "--fetch.allow-ports", *ports),
    ]


def held_bytes(job: psutil.Process) -> int:
    """Returns the memory of a job and all of its processes that no file backs.

    Pages of libraries are left out: which process they are counted to changes with who else runs.
    """
    held = 0
    for process in [job, *job.children(recursive=True)]:
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        except FileNotFoundError:
            continue
        fields = dict(line.split(":", 1) for line in lines if ":" in line)
        for name in ("RssAnon", "RssShmem"):
            held += int(fields.get(name, "0 kB").split()[0]) * 1024
    return held


def watch(words: list[str], root: Path) -> np.ndarray:
    """Runs the job; returns seconds, URLs done and bytes held, a row for each second."""
    layout, samples = DatasetLayout(str(root)), []
    reader, started = ProgressReader(layout), time.monotonic()
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as job:
        process = psutil.Process(job.pid)
        while job.poll() is None:
            try:
                held = held_bytes(process)
            except psutil.Error:
                break
            states = [state for state in reader.read() if state.stage is Stage.FETCH]
            done = sum(state.rows_done for state in states)
            samples.append((time.monotonic() - started, done, held))
            time.sleep(1.0)
        said = job.communicate()[0]
    if job.returncode:
        sys.exit(f"the job ended with status {job.returncode}:\n{said}")
    return np.array(samples, np.float64)


def at_work(samples: np.ndarray) -> np.ndarray:
    """Returns the samples from the first URL to the last: neither start-up nor the end."""
    done = samples[:, 1]
    return samples[(done > 0) & (done < done.max())]


def slope_mb(samples: np.ndarray) -> float:
    """Returns by how many MB the memory grows in 10,000 URLs, once the job is warm."""
    warm = samples[samples[:, 1] >= WARM_RATIO * samples[-1, 1]]
    return float(np.polyfit(warm[:, 1], warm[:, 2], 1)[0] * 10_000 / 1e6)


def outcomes(root: Path, faults: dict[str, str]) -> tuple[dict[str, Counter[str]], int]:
    """Returns the reasons that each fault was rejected for, and how many sound URLs were rejected.

    A faulty URL that was kept counts under the reason `kept`.
    """
    found: dict[str, Counter[str]] = {fault: Counter() for fault in FAULTS}
    sound_rejected = 0
    for path in sorted((root / "rejected" / "fetch").glob("*.parquet")):
        table = pq.read_table(path, columns=["url", "reason"]).to_pydict()
        for url, reason in zip(table["url"], table["reason"], strict=True):
            if url in faults:
                found[faults[url]][reason] += 1
            else:
                sound_rejected += 1
    for path in sorted((root / "fetched").glob("*.parquet")):
        for url in pq.read_table(path, columns=["url"])["url"].to_pylist():
            if url in faults:
                found[faults[url]]["kept"] += 1
    return found, sound_rejected


def plot(samples: np.ndarray, path: Path, title: str) -> None:
    """Draws the memory over the URLs done."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 3.2), layout="constrained")
    axes.plot(samples[:, 1] / 1000, samples[:, 2] / 1e6, linewidth=1.2, color="#2a6f97")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("URLs done, thousands")
    axes.set_ylabel("memory of all processes, MB")
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def soak(count: int, per_shard: int, folder: Path) -> tuple[np.ndarray, bool]:
    """Runs the soak and prints what came of it; returns the samples and whether all is well."""
    words = [sys.executable, __file__, "--serve"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            pairs, root = folder / "pairs.tsv", folder / "out"
            faults = write_pairs(pairs, count, int(server.stdout.readline()))
            samples = watch(command(pairs, root, per_shard), root)
        finally:
            server.terminate()
    stages = count_stages(DatasetLayout(str(root)))
    check_balance(DatasetLayout(str(root)), stages)
    found, sound_rejected = outcomes(root, faults)
    for fault, reasons in found.items():
        print(f"  {fault:14s} {json.dumps(dict(reasons.most_common()))}")
    fetched = stages[Stage.FETCH.value]
    rejected = sum(fetched.rejected.values())
    print(
        f"{fetched.rows_in:,} URLs = {fetched.kept:,} kept + {rejected:,} rejected; "
        f"sound ones rejected: {sound_rejected}"
    )
    is_well = (fetched.rows_in, fetched.kept, sound_rejected) == (count, count - len(faults), 0)
    return samples, is_well and rejected == len(faults)


def main() -> None:
    """Runs the soak, prints its figures and ends with its verdict."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--urls", type=int, default=50_000)
    parser.add_argument("--pairs-per-shard", type=int, default=2_500)
    parser.add_argument("--plot", type=Path, help="where to draw the memory, as PNG")
    parser.add_argument("--quick", action="store_true", help="3,000 URLs")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
    if options.quick:
        options.urls, options.pairs_per_shard = 3_000, 300
    with tempfile.TemporaryDirectory() as folder:
        samples, is_well = soak(options.urls, options.pairs_per_shard, Path(folder))
    seconds, samples = samples[-1, 0], at_work(samples)
    slope = slope_mb(samples)
    summary = (
        f"{options.urls:,} URLs, {100 // FAULTY_EVERY} % faulty, in {seconds:.0f} s: "
        f"peak {samples[:, 2].max() / 1e6:.0f} MB, {slope:+.1f} MB in 10,000 URLs"
    )
    print(summary)
    if options.plot:
        plot(samples, options.plot, summary)
    if not is_well:
        sys.exit("some counts are not as they should be")
    if options.urls >= JUDGED_URLS and not slope <= MAX_SLOPE_MB:
        sys.exit(f"memory grows by more than {MAX_SLOPE_MB:g} MB in 10,000 URLs")


if __name__ == "__main__":
    main()
