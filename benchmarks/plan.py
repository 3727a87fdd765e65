"""What `plan` predicts from a small curation, held against what a larger one took.

    python benchmarks/plan.py                                    # 500 pairs and 5,000
    python benchmarks/plan.py --model demo/models/demo_clip      # a model that stands already
    python benchmarks/plan.py --rates pipeline/plan/rates.json   # and keep what both took
    python benchmarks/plan.py --sizes 1000 8000 --workers 2 --latency 0.1   # other circumstances
    python benchmarks/plan.py --runner ray --workers 2           # on a cluster of this machine
    python benchmarks/plan.py --save                             # benchmarks/results/plan.json

Both are curations of pictures made of two bundled stamps each, from a server on this machine, with
the demonstration CLIP, all by one worker unless told otherwise. Printed are, for each stage, the
seconds that the work was to take by the smaller run and took in the larger: of the workers by the
clock, of all cores that worked for it, and the bytes that it left. On a machine that others use,
the second says more.
"""

import argparse
import csv
import io
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import date
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.fetch.server import serve
from benchmarks.results import Table, add_save_option, processor, show_table
from pipeline.plan.forecast import Resources, StageForecast, forecast
from pipeline.plan.rates import Rates, rates_of, told_apart

ROOT = Path(__file__).parent.parent
COMMAND = Path(sys.executable).parent / "aligngpt-curate"
CORPUS = ROOT / "examples" / "corpus"
HOSTS = 50
SIDE = 256
PAIRS_PER_FILE = 250


def main() -> None:
    """Runs both curations and prints the comparison."""
    options = parse_options()
    if options.quick:
        options.sizes, options.pairs_per_shard = (50, 200), 50
    if options.serve:
        serve(Path(options.serve), options.latency)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        model = Path(options.model) if options.model else assembled(folder)
        captions = draw_pictures(folder / "pictures", max(options.sizes))
        workers = ["--workers", str(options.workers)]
        if options.runner == "ray":
            address = start_ray(folder, options.workers, stack)
            workers += ["--runner", "ray", "--ray-address", address]
        with serving(folder / "pictures", options.latency) as port:
            words = [*workers, *shards_of(options.pairs_per_shard)]
            roots = [curate(folder, model, captions[:n], port, words) for n in options.sizes]
        small, large = (rates_of(str(root), described(root, options)) for root in roots)
    show_table(
        comparison(small, large, options.workers),
        options.save,
        pairs=f"{small.rows_in:,} predict {large.rows_in:,}",
        runner=options.runner,
        workers=options.workers,
        latency_seconds=options.latency,
    )
    if options.rates:
        Path(options.rates).write_text(told_apart([small, large]).to_json())


def parse_options() -> argparse.Namespace:
    """Returns the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs=2, default=(500, 5000))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--pairs-per-shard", type=int, default=PAIRS_PER_FILE)
    parser.add_argument("--runner", choices=["local", "ray"], default="local")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--model", help="folder of the demonstration CLIP")
    parser.add_argument("--quick", action="store_true", help="50 pairs and 200")
    add_save_option(parser, "plan")
    parser.add_argument("--rates", help="file to write what the larger run took to")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    return parser.parse_args()


def start_ray(folder: Path, workers: int, stack: ExitStack) -> str:
    """Returns the head of a cluster with a node of one core for each worker, which a stack ends."""
    from tests.ray_cluster import RayCluster

    cluster = RayCluster(folder, {})
    stack.callback(cluster.stop)
    for _ in range(workers):
        cluster.add_node(1)
    return cluster.address


def assembled(folder: Path) -> Path:
    """Returns the demonstration CLIP, put together in a folder."""
    script = ROOT / "examples" / "assemble_models.py"
    words = [sys.executable, str(script), "--out", str(folder / "models"), "--only", "demo_clip"]
    subprocess.run(words, check=True)
    return folder / "models" / "demo_clip"


def draw_pictures(folder: Path, count: int) -> list[str]:
    """Returns the captions of so many pictures, drawn as JPEG: two stamps on a coloured ground."""
    folder.mkdir()
    with (CORPUS / "pairs.tsv").open(newline="", encoding="utf-8") as file:
        stamps = [(row["file"], row["caption"]) for row in csv.DictReader(file, delimiter="\t")]
    chance = random.Random(0)
    captions = []
    for number in range(count):
        (left, of_left), (right, of_right) = chance.sample(stamps, 2)
        picture = Image.new("RGB", (2 * SIDE, SIDE), _colour(chance))
        for place, name in ((0, left), (SIDE, right)):
            with Image.open(CORPUS / name) as image:
                stamp = image.convert("RGBA")
            stamp.thumbnail((SIDE, SIDE))
            picture.paste(stamp, (place, 0), stamp)
        data = io.BytesIO()
        picture.save(data, "JPEG", quality=90)
        (folder / f"{number:05d}.jpg").write_bytes(data.getvalue())
        captions.append(f"{of_left}, {of_right}")
    return captions


def _colour(chance: random.Random) -> tuple[int, int, int]:
    return chance.randrange(256), chance.randrange(256), chance.randrange(256)


@contextmanager
def serving(folder: Path, latency: float) -> Iterator[int]:
    """Gives the port of a server of the pictures, which answers after so many seconds."""
    words = [sys.executable, __file__, "--serve", str(folder), "--latency", str(latency)]
    server = subprocess.Popen(words, stdout=subprocess.PIPE)
    try:
        yield int(server.stdout.readline())  # type: ignore[union-attr]
    finally:
        server.kill()
        server.wait()


def shards_of(pairs: int) -> list[str]:
    """Returns the words that say how many pairs a shard has."""
    return ["--read.pairs-per-shard", str(pairs), "--pack.samples-per-shard", str(pairs)]


def curate(folder: Path, model: Path, captions: list[str], port: int, more: list[str]) -> Path:
    """Returns the folder of a curation of the first pictures.

    Args:
        more: words of the command.
    """
    root, pairs = folder / f"data{len(captions)}", folder / f"pairs{len(captions)}"
    lines = [
        f"http://127.9.0.{number % HOSTS}:{port}/{number}.jpg\t{caption}\n"
        for number, caption in enumerate(captions)
    ]
    pairs.mkdir()
    for start in range(0, len(lines), PAIRS_PER_FILE):
        part = "".join(["url\tcaption\n", *lines[start : start + PAIRS_PER_FILE]])
        (pairs / f"{start:06d}.tsv").write_text(part, encoding="utf-8")
    flags = {
        "--recipe": "demo",
        "--pairs": f"{pairs}/*.tsv",
        "--out": str(root),
        "--score.model": f"local-dir:{model}",
        "--fetch.allow-networks": "127.0.0.0/8",
        "--fetch.allow-ports": str(port),
    }
    words = [word for flag in flags.items() for word in flag]
    subprocess.run([str(COMMAND), "curate", *words, *more], check=True)
    return root


def described(root: Path, options: argparse.Namespace) -> str:
    """Returns what a run was, in words."""
    workers = "one worker" if options.workers == 1 else f"{options.workers} workers"
    rows = json.loads((root / "manifest.json").read_text())["rows_in"]
    return (
        f"benchmarks/plan.py: {rows:,} pictures of 512 x 256 from the machine itself, the "
        f"demonstration CLIP, {workers}{' on Ray' * (options.runner == 'ray')} "
        f"on {len(os.sched_getaffinity(0))} cores of {processor()}, {date.today():%B %Y}"
    )


def comparison(small: Rates, large: Rates, workers: int) -> Table:
    """Returns what each stage was said to take by the smaller run, and took."""
    resources = Resources(
        workers=workers,
        gpus=0,
        gpu_pairs_per_second=None,
        price_worker_hour=0.0,
        price_gpu_hour=0.0,
    )
    predicted = forecast(small, large.rows_in, resources)
    measured = forecast(large, large.rows_in, resources)
    units = ("seconds by the clock", "core seconds", "MB stored")
    columns = [cell for unit in units for cell in (f"{unit}: said", "took", "off by")]
    rows = [
        [before.stage, *_cells(before, after)]
        for before, after in zip(predicted, measured, strict=True)
    ]
    rows.append(["all", *_cells(_sum(predicted), _sum(measured))])
    return Table(["stage", *columns], rows)


def _sum(stages: list[StageForecast]) -> StageForecast:
    values = {
        name: sum(getattr(stage, name) for stage in stages)
        for name in StageForecast.__dataclass_fields__
        if name != "stage"
    }
    return StageForecast(stage="all", **values)


def _cells(before: StageForecast, after: StageForecast) -> list[str]:
    cells = []
    for name, unit in (("worker_seconds", 1.0), ("cpu_seconds", 1.0), ("stored_bytes", 1e6)):
        said, was = getattr(before, name) / unit, getattr(after, name) / unit
        cells += [f"{said:.2f}", f"{was:.2f}", f"{100 * (said / was - 1):+.0f} %" if was else "-"]
    return cells


if __name__ == "__main__":
    main()
