"""Fetching against img2dataset 1.47, both from the same local server.

    python benchmarks/fetch.py --case cpu --images 2000
    python benchmarks/fetch.py --case latency --images 2000

cpu: photographs of 800x600, no delay, both sides with as many processes as cores.
latency: every answer takes half a second and one host in a hundred hangs; both at their defaults.
Each side runs in a process of its own; the server too, on the same cores.
"""

import argparse
import asyncio
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg
from PIL import Image
from sklearn.datasets import load_sample_images

DISTINCT = 200
HOSTS = 200
LATENCY_SECONDS = 0.5
HANG_EVERY = 100


def photographs(count: int) -> list[bytes]:
    """Returns JPEGs of 800x600 and about 120 KB: parts of two real photographs, turned about."""
    sources = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    generator = np.random.default_rng(0)
    files = []
    for number in range(count):
        source = sources[number % len(sources)]
        width = int(generator.integers(400, source.width))
        height = width * 3 // 4
        left = int(generator.integers(0, source.width - width + 1))
        top = int(generator.integers(0, max(1, source.height - height + 1)))
        part = source.crop((left, top, left + width, top + height)).resize((800, 600), 3)
        file = io.BytesIO()
        part.save(file, "JPEG", quality=92)
        files.append(file.getvalue())
    return files


class PhotoServer(asyncio.Protocol):
    """Answers every GET with the photograph that its path numbers."""

    files: ClassVar[list[bytes]] = []
    delay_seconds = 0.0

    def connection_made(self, transport: Any) -> None:
        """Remembers whom to answer."""
        self._transport = transport
        self._received = b""
        last = int(transport.get_extra_info("sockname")[0].rsplit(".", 1)[1])
        self._hangs = self.delay_seconds > 0 and last % HANG_EVERY == HANG_EVERY - 1

    def data_received(self, data: bytes) -> None:
        """Answers each whole request, after the delay."""
        self._received += data
        while b"\r\n\r\n" in self._received:
            head, self._received = self._received.split(b"\r\n\r\n", 1)
            if not self._hangs:
                path = head.split(b" ", 2)[1]
                asyncio.get_running_loop().call_later(self.delay_seconds, self._answer, path)

    def _answer(self, path: bytes) -> None:
        name = path.rsplit(b"/", 1)[-1].removesuffix(b".jpg")
        if name.isdigit():
            body, status = self.files[int(name) % len(self.files)], b"200 OK"
        else:
            body, status = b"", b"404 Not Found"
        head = b"HTTP/1.1 %s\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n"
        if not self._transport.is_closing():
            self._transport.write(head % (status, len(body)) + body)


def serve(folder: Path, delay_seconds: float) -> None:
    """Serves the photographs in a folder for ever; prints the port."""

    async def run() -> None:
        PhotoServer.files = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]
        PhotoServer.delay_seconds = delay_seconds
        loop = asyncio.get_running_loop()
        server = await loop.create_server(PhotoServer, "0.0.0.0", 0, backlog=4096)
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

    asyncio.run(run())


def run_ours(root: str, settings: dict[str, Any]) -> None:
    """Fetches shard 0 of a dataset as the pipeline does."""
    from pipeline.config import FetchConfig
    from pipeline.fetch import fetch_shard
    from schemas.shards import DatasetLayout

    fetch_shard(DatasetLayout(root), 0, FetchConfig(**settings))


def write_pairs(root: str, urls: list[str]) -> None:
    """Writes the shard of pairs that ours reads."""
    from pipeline.storage import commit_file
    from schemas.columns import table_from_records, write_table
    from schemas.records import PAIR_SCHEMA, Pair, pair_key
    from schemas.shards import DatasetLayout

    pairs = [
        Pair(
            key=pair_key(url, "a photograph"),
            url=url,
            caption="a photograph",
            conversations=None,
            source="benchmark",
            expected_hash=None,
        )
        for url in urls
    ]
    pairs.sort(key=lambda pair: pair.key)
    with commit_file(DatasetLayout(root).pairs(0)) as file:
        table = table_from_records(pairs, PAIR_SCHEMA)
        write_table(table, file, {"fingerprint": hashlib.sha256(repr(urls).encode()).hexdigest()})


def measured(command: list[str]) -> dict[str, float]:
    """Returns the seconds that a command took, and the memory of its processes at their peak."""
    environment = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"}
    started = time.perf_counter()
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    peak = 0
    errors: list[bytes] = []
    reader = threading.Thread(target=lambda: errors.append(process.stderr.read()))
    reader.start()
    parent = psutil.Process(process.pid)
    while process.poll() is None:
        held = 0
        for one in [parent, *_children(parent)]:
            try:
                held += one.memory_info().rss
            except psutil.Error:
                continue
        peak = max(peak, held)
        time.sleep(0.1)
    seconds = time.perf_counter() - started
    reader.join()
    if process.returncode != 0:
        raise SystemExit(f"{command[:4]} failed:\n{errors[0].decode()[-3000:]}")
    return {"seconds": seconds, "peak_bytes": peak}


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def img2dataset_command(urls: Path, output: Path, cores: int, case: str) -> list[str]:
    """Returns the command of the peer: as many processes as cores, or its defaults."""
    command = [
        *(sys.executable, "-m", "img2dataset.main", f"--url_list={urls}"),
        *(f"--output_folder={output}", "--input_format=parquet", "--url_col=url"),
        *("--caption_col=caption", "--output_format=webdataset", "--resize_mode=keep_ratio"),
        *("--image_size=256", "--encode_quality=95", "--number_sample_per_shard=10000"),
    ]
    if case == "cpu":
        command += [f"--processes_count={cores}", "--thread_count=32"]
        command[command.index("--number_sample_per_shard=10000")] = (
            "--number_sample_per_shard=500"  # its processes share the work by shards only
        )
    return command


def stored_images(tar_paths: list[Path], key: str) -> dict[str, bytes]:
    """Returns URL to stored JPEG of some tars."""
    images = {}
    for path in tar_paths:
        with tarfile.open(path) as tar:
            members = {member.name: member for member in tar.getmembers()}
            for name in [name for name in members if name.endswith(".json")]:
                values = json.load(tar.extractfile(members[name]))  # type: ignore[arg-type]
                image = members.get(name.removesuffix(".json") + ".jpg")
                if image is not None:
                    images[values[key]] = tar.extractfile(image).read()  # type: ignore[union-attr]
    return images


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Returns the peak signal-to-noise ratio of two images in dB."""
    error = np.mean((one.astype(float) - other.astype(float)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def pixel_differences(ours: Path, theirs: Path, files: list[bytes]) -> dict[str, float]:
    """Returns the lowest and mean PSNR to a full decode with area resize, and to the peer."""
    our_images = stored_images([ours], "url")
    their_images = stored_images(sorted(theirs.glob("*.tar")), "url")
    to_reference, to_peer = [], []
    for url in sorted(our_images)[:100]:
        number = int(url.rsplit("/", 1)[-1].removesuffix(".jpg")) % len(files)
        mine = simplejpeg.decode_jpeg(our_images[url])
        size = (mine.shape[1], mine.shape[0])
        full = cv2.resize(simplejpeg.decode_jpeg(files[number]), size, interpolation=cv2.INTER_AREA)
        to_reference.append(psnr(mine, full))
        if url in their_images:
            to_peer.append(psnr(mine, simplejpeg.decode_jpeg(their_images[url])))
    return {
        "psnr_to_full_decode_min_db": min(to_reference),
        "psnr_to_full_decode_mean_db": float(np.mean(to_reference)),
        "psnr_to_img2dataset_mean_db": float(np.mean(to_peer)) if to_peer else float("nan"),
    }


def compare(case: str, images: int, cores: int, folder: Path) -> dict[str, Any]:
    """Returns the measurements of both sides on one case."""
    photos = folder / "photos"
    photos.mkdir()
    files = photographs(DISTINCT)
    for number, data in enumerate(files):
        (photos / f"{number:05d}.jpg").write_bytes(data)
    delay = LATENCY_SECONDS if case == "latency" else 0.0
    server = subprocess.Popen(
        [sys.executable, __file__, "--serve", str(photos), "--delay", str(delay)],
        stdout=subprocess.PIPE,
    )
    try:
        port = int(server.stdout.readline())  # type: ignore[union-attr]
        urls = [f"http://127.9.0.{number % HOSTS}:{port}/{number}.jpg" for number in range(images)]
        table = pa.table({"url": urls, "caption": ["a photograph"] * images})
        pq.write_table(table, folder / "urls.parquet")
        write_pairs(str(folder / "ours"), urls)
        settings: dict[str, Any] = {"allow_networks": ("127.0.0.0/8",), "allow_ports": (port,)}
        if case == "cpu":
            settings["decode_processes"] = cores
        ours = measured([sys.executable, __file__, "--ours", str(folder), json.dumps(settings)])
        theirs = measured(
            img2dataset_command(folder / "urls.parquet", folder / "theirs", cores, case)
        )
    finally:
        server.kill()
        server.wait()
    tar = folder / "ours" / "fetched" / "00000.tar"
    ours["kept"] = len(stored_images([tar], "url"))
    theirs["kept"] = len(stored_images(sorted((folder / "theirs").glob("*.tar")), "url"))
    for side in (ours, theirs):
        side["images_per_second"] = images / side["seconds"]
    return {
        "case": case,
        "images": images,
        "cores": cores,
        "mean_file_bytes": sum(map(len, files)) / len(files),
        "ours": ours,
        "img2dataset": theirs,
        "times_faster_by_the_clock": theirs["seconds"] / ours["seconds"],
        **pixel_differences(tar, folder / "theirs", files),
    }


def main() -> None:
    """Runs one case and prints its measurements as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=["cpu", "latency"], default="cpu")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--quick", action="store_true", help="200 images")
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--delay", type=float, default=0.0, help=argparse.SUPPRESS)
    parser.add_argument("--ours", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve, arguments.delay)
    elif arguments.ours:
        folder, text = arguments.ours
        settings = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in json.loads(text).items()
        }
        run_ours(f"{folder}/ours", settings)
    else:
        with tempfile.TemporaryDirectory(prefix="fetch-benchmark-") as name:
            images = 200 if arguments.quick else arguments.images
            found = compare(arguments.case, images, arguments.cores, Path(name))
        print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
