"""What the stages of a curation take in the program and in the kernel, and their page faults.

    python benchmarks/system_time.py                                  # 2,000 pairs
    python benchmarks/system_time.py --model demo/models/demo_clip    # a model that stands already
    python benchmarks/system_time.py --save     # and writes benchmarks/results/system_time.json
    python benchmarks/system_time.py --quick    # does it run at all?

Each stage is a command of its own over the same folder, which is then given once more, to find that
all is done: what that takes, its start, is taken off. Counted are the command, its workers and its
decoders, so that the machine's other work hardly matters. The pictures are of `benchmarks/plan.py`.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.plan import COMMAND, HOSTS, assembled, draw_pictures, serving
from benchmarks.results import Table, add_save_option, show_table

STAGES = ("fetch", "score", "deduplicate", "level", "pack", "report")
"""Commands of stages; fetch reads first."""

Spent = tuple[float, float, int]
"""Seconds in the program, seconds in the kernel, page faults."""


def main() -> None:
    """Runs the stages one after another and prints what each took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--model", help="folder of the demonstration CLIP")
    parser.add_argument("--quick", action="store_true", help="60 pairs")
    add_save_option(parser, "system_time")
    options = parser.parse_args()
    pairs = 60 if options.quick else options.pairs
    rows = []
    with tempfile.TemporaryDirectory(prefix="aligngpt-bench-") as name:
        folder = Path(name)
        model = Path(options.model) if options.model else assembled(folder)
        captions = draw_pictures(folder / "pictures", pairs)
        with serving(folder / "pictures", 0.0) as port:
            write_pairs(folder / "pairs.tsv", captions, port)
            for stage in STAGES:
                words = words_of(stage, folder, model, port)
                user, system, faults = (
                    max(0, whole - start)
                    for whole, start in zip(spent_by(words), spent_by(words), strict=True)
                )
                share = system / (user + system) if user + system else 0.0
                rows.append([stage, f"{user:.1f}", f"{system:.1f}", f"{share:.0%}", f"{faults:,}"])
                print(", ".join(rows[-1]), flush=True)
    columns = ("stage", "in the program, s", "in the kernel, s", "of both", "page faults")
    show_table(Table(columns, rows), options.save, pairs=pairs)


def write_pairs(path: Path, captions: list[str], port: int) -> None:
    """Writes the input: a link to the server and a caption in each line."""
    lines = [
        f"http://127.9.0.{number % HOSTS}:{port}/{number}.jpg\t{caption}\n"
        for number, caption in enumerate(captions)
    ]
    path.write_text("".join(["url\tcaption\n", *lines]), encoding="utf-8")


def words_of(stage: str, folder: Path, model: Path, port: int) -> list[str]:
    """Returns the command of a stage."""
    flags = {"--out": str(folder / "data"), "--recipe": "demo"}
    if stage == "fetch":
        flags["--pairs"] = str(folder / "pairs.tsv")
        flags["--fetch.allow-networks"] = "127.0.0.0/8"
        flags["--fetch.allow-ports"] = str(port)
    if stage == "score":
        flags["--score.model"] = f"local-dir:{model}"
    return [str(COMMAND), stage, *(word for flag in flags.items() for word in flag)]


def spent_by(words: list[str]) -> Spent:
    """Returns what a command and the processes that it waited for took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (
        after.ru_utime - before.ru_utime,
        after.ru_stime - before.ru_stime,
        after.ru_minflt - before.ru_minflt,
    )


if __name__ == "__main__":
    main()
