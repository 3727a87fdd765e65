"""Fetching against img2dataset 1.47, both from the same local server.

    python benchmarks/fetch/run.py                  # all parts
    python benchmarks/fetch/run.py --part latency   # one of them
    python benchmarks/fetch/run.py --save           # and writes benchmarks/results/fetch_PART.json
    python benchmarks/fetch/run.py --quick          # all parts, small

cpu: photographs of 800x600, no delay, both sides with as many processes as cores.
latency: three shards of 10,000 thumbnails of 160x120, every answer takes half a second, one host
    in a hundred hangs; both sides at their defaults. So small that decoding is not what is timed.
mixed: the same with 2,000 photographs of 800x600: latency, hanging hosts and decoding at once.
web: ten shards of thumbnails of 2,000 hosts, of which one in ten hangs and one in twenty takes
    eight seconds; ours alone, one shard at a time and as it comes, beside what 1,024 connections
    allow.
limit: what the images of the first part cost without any fetching, step by step.
start: from the command to the first request, with one worker and with two.
cores: the first part on one core and on two, which shows what one more core brings.
pixels: how far both sides are from a full decode with area resize, and what of that is encoding.

Rounds are interleaved, the side that begins changes, medians are printed; each side is a process
of its own, measured by the clock from its start to its end and in its own count without start-up;
the server is another process on the same cores. The peak memory is that of all processes of a
side, what they share counted once.
"""

import argparse
import json
import os
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.fetch.least import least_core_ms
from benchmarks.fetch.limit import limit_part
from benchmarks.fetch.measure import Run, measured
from benchmarks.fetch.server import HOSTS, hangs, photographs, serve
from benchmarks.fetch.sides import our_command, stored_images, their_command, write_pairs
from benchmarks.fetch.start import start_part
from benchmarks.fetch.web import least_seconds, web_part
from benchmarks.results import save_result
from scoring.images.prepare import prepare_image
from scoring.images.settings import ImageSettings

DISTINCT = 200
LATENCY_SECONDS = 0.5
BARELY_ASKED = 6000
"""Images that a client asks for that does nothing else: connecting is then little of it."""
PHOTOGRAPH, THUMBNAIL = (800, 600), (160, 120)
PARTS = ("cpu", "limit", "latency", "mixed", "web", "start", "cores", "pixels")
SIZES = {
    "cpu": 2000,
    "limit": 200,
    "latency": 30_000,
    "mixed": 2000,
    "web": 100_000,
    "start": 400,
    "cores": 1000,
    "pixels": 200,
}
QUICK_SIZES = {
    "cpu": 200,
    "limit": 40,
    "latency": 400,
    "mixed": 200,
    "web": 4000,
    "start": 40,
    "cores": 100,
    "pixels": 40,
}
ROUNDS = {
    "cpu": 3,
    "limit": 5,
    "latency": 1,
    "mixed": 1,
    "web": 1,
    "start": 3,
    "cores": 1,
    "pixels": 1,
}


class Bench:
    """A folder with photographs, and the two sides that fetch them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = photographs(DISTINCT, PHOTOGRAPH)

    @contextmanager
    def serving(
        self, delay_seconds: float, size: tuple[int, int], *, is_web: bool = False
    ) -> Iterator[int]:
        """Gives the port of a server of photographs of a size."""
        photos = self.folder / f"{size[0]}x{size[1]}"
        if not photos.exists():
            photos.mkdir()
            for number, data in enumerate(photographs(DISTINCT, size)):
                (photos / f"{number:05d}.jpg").write_bytes(data)
        words = ["--serve", str(photos), "--delay", str(delay_seconds), *["--web"] * is_web]
        server = subprocess.Popen([sys.executable, __file__, *words], stdout=subprocess.PIPE)
        assert server.stdout is not None
        self._served, self._server = server.stdout, server.pid
        try:
            yield int(server.stdout.readline())
        finally:
            server.kill()
            server.wait()

    def compare(
        self,
        images: int,
        rounds: int,
        processes: int | None,
        delay_seconds: float = 0.0,
        size: tuple[int, int] = PHOTOGRAPH,
        cores: Collection[int] | None = None,
    ) -> dict[str, Any]:
        """Returns the medians of both sides over some rounds.

        Args:
            processes: of each side; None for its defaults.
            cores: that each side may use; None for all.
        """
        runs: dict[str, list[Run]] = {"ours": [], "img2dataset": []}
        with self.serving(delay_seconds, size) as port:
            urls = [f"http://127.9.0.{n % HOSTS}:{port}/{n}.jpg" for n in range(images)]
            for number in range(rounds):
                for side in sorted(runs, reverse=number % 2 == 0):
                    runs[side].append(self._run(side, urls, port, processes, cores))
            least = self._least_core_ms(urls, size)
        kept = {"ours": len(self.our_images()), "img2dataset": len(self.their_images())}
        sides = {side: _medians(found, images, kept[side]) for side, found in runs.items()}
        ours, theirs = sides["ours"], sides["img2dataset"]
        return {
            "images": images,
            "rounds": rounds,
            "least_core_ms": least,
            **bounds(images, delay_seconds, least, ours["working_seconds"]),
            **sides,
            "times_faster_by_the_clock": theirs["seconds"] / ours["seconds"],
            "times_faster_in_their_own_count": theirs["working_seconds"] / ours["working_seconds"],
            "memory_ratio": ours["peak_mib"] / theirs["peak_mib"],
        }

    @contextmanager
    def serving_first(self) -> Iterator[tuple[int, Callable[[], float]]]:
        """Gives a server's port, and what returns when it was asked first, in Unix time."""
        with self.serving(0.0, THUMBNAIL) as port:
            yield port, self._first_asked

    def _first_asked(self) -> float:
        if not select.select([self._served], [], [], 0.0)[0]:
            raise SystemExit("nothing was asked of the server")
        return float(self._served.readline())

    def _run(
        self,
        side: str,
        urls: list[str],
        port: int,
        processes: int | None,
        cores: Collection[int] | None,
    ) -> Run:
        root = self.folder / side
        shutil.rmtree(root, ignore_errors=True)
        if side == "ours":
            write_pairs(str(root), urls)
            return measured(our_command(root, port, processes), root, cores)
        table = self.folder / "urls.parquet"
        pq.write_table(pa.table({"url": urls, "caption": ["a photograph"] * len(urls)}), table)
        return measured(their_command(table, root, processes), root, cores)

    def _least_core_ms(self, urls: list[str], size: tuple[int, int]) -> dict[str, float]:
        """Returns what each image takes of the cores at least, by who needs them."""
        files = sorted((self.folder / f"{size[0]}x{size[1]}").glob("*.jpg"))
        answered = [url for number, url in enumerate(urls) if not hangs(number % HOSTS)]
        asked = list(islice(cycle(answered), BARELY_ASKED))
        return least_core_ms(asked, [path.read_bytes() for path in files], self._server)

    def our_images(self) -> dict[str, bytes]:
        """Returns what our last run stored, by URL."""
        return stored_images(sorted((self.folder / "ours" / "fetched").glob("*.tar")))

    def their_images(self) -> dict[str, bytes]:
        """Returns what img2dataset's last run stored, by URL."""
        return stored_images(sorted((self.folder / "img2dataset").glob("*.tar")))


def _medians(runs: list[Run], images: int, kept: int) -> dict[str, float]:
    seconds = statistics.median(run.seconds for run in runs)
    return {
        "seconds": seconds,
        "seconds_of_each_round": [round(run.seconds, 2) for run in runs],  # type: ignore[dict-item]
        "working_seconds": statistics.median(run.working_seconds for run in runs),
        "images_per_second": images / seconds,
        "peak_mib": statistics.median(run.peak_bytes for run in runs) / 2**20,
        "core_ms_per_image": 1000 * statistics.median(run.core_seconds for run in runs) / images,
        "kept": kept,
    }


def bounds(
    images: int, delay_seconds: float, least: dict[str, float], working_seconds: float
) -> dict[str, float]:
    """Returns what this machine and the connections allow, and which share of it was reached.

    Args:
        least: milliseconds of a core for an image, by who needs them.
    """
    cores = len(os.sched_getaffinity(0))
    found = {
        "decoding_alone_per_second": 1000 * cores / least["preparing"],
        "cores_allow_per_second": 1000 * cores / sum(least.values()),
    }
    if delay_seconds:

        def answer_seconds(host: int) -> float | None:
            return None if hangs(host) else delay_seconds

        allowed = images / least_seconds(images, HOSTS, answer_seconds)
        found["connections_allow_per_second"] = allowed
    nearest = min(found.values())
    return {**found, "share_of_the_bound": images / working_seconds / nearest}


def cores_part(bench: Bench, images: int, rounds: int) -> dict[str, Any]:
    """Returns both sides on one core and on two, and what the second brings."""
    available = sorted(os.sched_getaffinity(0))[:2]
    if len(available) < 2:
        return {"skipped": "this machine has one core"}
    one = bench.compare(images, rounds, 1, cores=available[:1])
    two = bench.compare(images, rounds, 2, cores=available)
    gains = {
        f"{side}_gains_by_the_second_core": (
            one[side]["working_seconds"] / two[side]["working_seconds"]
        )
        for side in ("ours", "img2dataset")
    }
    return {"one_core": one, "two_cores": two, **gains}


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Returns the peak signal-to-noise ratio of two images in dB."""
    error = np.mean((one.astype(float) - other.astype(float)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def pixels_part(bench: Bench, images: int) -> dict[str, Any]:
    """Returns the PSNR of each side to a full decode with area resize.

    Also of what we resize before it is encoded, and of the encoder alone.
    """
    bench.compare(images, 1, 2)
    theirs = bench.their_images()
    found: dict[str, list[float]] = {
        name: []
        for name in (
            "ours",
            "ours_before_encoding",
            "encoder_alone",
            "img2dataset",
            "ours_to_img2dataset",
        )
    }
    lossless = ImageSettings(image_size=256, image_format="png")
    for url, data in bench.our_images().items():
        original = bench.files[int(url.rsplit("/", 1)[-1].removesuffix(".jpg")) % DISTINCT]
        ours = simplejpeg.decode_jpeg(data)
        size = (ours.shape[1], ours.shape[0])
        full = simplejpeg.decode_jpeg(original)
        full = cv2.resize(full, size, interpolation=cv2.INTER_AREA)
        encoded = simplejpeg.encode_jpeg(full, quality=95, colorspace="RGB", colorsubsampling="420")
        found["ours"].append(psnr(ours, full))
        before = prepare_image(original, lossless).encoded
        pixels = cv2.imdecode(np.frombuffer(before, np.uint8), cv2.IMREAD_COLOR)
        assert pixels is not None
        found["ours_before_encoding"].append(psnr(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), full))
        found["encoder_alone"].append(psnr(simplejpeg.decode_jpeg(encoded), full))
        if url in theirs:
            peer = simplejpeg.decode_jpeg(theirs[url])
            if peer.shape == full.shape:
                found["img2dataset"].append(psnr(peer, full))
                found["ours_to_img2dataset"].append(psnr(ours, peer))
    return {
        f"{name}_psnr_db": {
            "lowest": min(values),
            "median": statistics.median(values),
            "photographs": len(values),
        }
        for name, values in found.items()
        if values
    }


def run_part(
    bench: Bench, part: str, is_quick: bool, rounds: int | None, images: int | None = None
) -> dict[str, Any]:
    """Returns the measurements of one part."""
    images = images or (QUICK_SIZES if is_quick else SIZES)[part]
    rounds = rounds or (1 if is_quick else ROUNDS[part])
    if part == "cpu":
        return bench.compare(images, rounds, len(os.sched_getaffinity(0)))
    if part == "limit":
        return limit_part(bench.files[:images], rounds)
    if part in ("latency", "mixed"):
        size = THUMBNAIL if part == "latency" else PHOTOGRAPH
        return bench.compare(images, rounds, None, delay_seconds=LATENCY_SECONDS, size=size)
    if part == "web":
        serving = partial(bench.serving, LATENCY_SECONDS, THUMBNAIL, is_web=True)
        return web_part(serving, bench.folder, images, rounds)
    if part == "start":
        return start_part(bench.serving_first, bench.folder, images, rounds)
    if part == "cores":
        return cores_part(bench, images, rounds)
    return pixels_part(bench, images)


def main() -> None:
    """Runs the parts and prints their measurements as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=PARTS, action="append", help="all of them by default")
    parser.add_argument("--rounds", type=int, help="of each part")
    parser.add_argument("--quick", action="store_true", help="few images, one round")
    parser.add_argument("--images", type=int, help="of each part")
    parser.add_argument("--save", action="store_true", help="write the figures into files")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--web", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--delay", type=float, default=0.0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve, arguments.delay, is_web=arguments.web)
    else:
        print(json.dumps({"machine": {"cores": len(os.sched_getaffinity(0))}}), flush=True)
        with tempfile.TemporaryDirectory(prefix="fetch-benchmark-") as name:
            bench = Bench(Path(name))
            for part in arguments.part or PARTS:
                found = run_part(bench, part, arguments.quick, arguments.rounds, arguments.images)
                print(json.dumps({part: found}, indent=2), flush=True)
                if arguments.save:
                    save_result(f"fetch_{part}", found)


if __name__ == "__main__":
    main()
