"""How far scores are off when they are computed again: other batch-mates, other instructions.

    python benchmarks/rescore.py --save
    python benchmarks/rescore.py --quick    # does it run at all?

The corpus of `examples/` is scored by the demonstration CLIP on one thread, in batches of 64, in
fp32 and in bf16. Then `rescore` computes 300 of the scores again, which stand in other batches: as
this processor does it, and with the instructions of AVX2 alone.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.results import Table, add_save_option, show_table

ROOT = Path(__file__).parent.parent
CORPUS = ROOT / "examples" / "corpus"
COMMAND = Path(sys.executable).parent / "aligngpt-curate"
PRECISIONS = ("fp32", "bf16")
WAYS = {
    "other pairs in a batch": {},
    "the same with AVX2 alone": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
    },
}
SAMPLE = 300
SAID = re.compile(r"largest difference (\S+), mean (\S+)")


def run(words: list[str], variables: dict[str, str] | None = None) -> str:
    """Returns what a command prints; ends with its words if it fails."""
    done = subprocess.run(
        words, capture_output=True, text=True, env={**os.environ, **(variables or {})}, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(words)}:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def differences(data: Path, sample: int) -> list[str]:
    """Returns the largest and the mean difference of the scores of a dataset, in each way."""
    found = []
    for variables in WAYS.values():
        said = run([str(COMMAND), "rescore", "--sample", str(sample), str(data)], variables)
        told = SAID.search(said)
        assert told is not None, said
        found.append("{:.1e} ({:.1e})".format(*map(float, told.groups())))
    return found


def main() -> None:
    """Scores, and prints how far computing anew is off."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="20 pictures")
    add_save_option(parser, "rescore")
    options = parser.parse_args()
    sample = 10 if options.quick else SAMPLE
    with tempfile.TemporaryDirectory() as folder:
        models, pairs = Path(folder) / "models", Path(folder) / "pairs.tsv"
        script = str(ROOT / "examples" / "assemble_models.py")
        run([sys.executable, script, "--out", str(models), "--only", "demo_clip"])
        lines = (CORPUS / "pairs.tsv").read_text("utf-8").splitlines(keepends=True)
        lines = lines[:21] if options.quick else lines
        pairs.write_text("".join(lines), "utf-8")
        columns = []
        for precision in PRECISIONS:
            data = Path(folder) / precision
            given = f"--pairs {pairs} --read.url-column file --read.image-folder {CORPUS}"
            run([str(COMMAND), "fetch", *given.split(), "--out", str(data)])
            given = f"--score.model local-dir:{models}/demo_clip --score.precision {precision}"
            given += " --score.device cpu --score.threads 1 --score.batch-size 64"
            run([str(COMMAND), "score", "--out", str(data), *given.split()])
            columns.append(differences(data, sample))
    rows = [[way, *found] for way, found in zip(WAYS, zip(*columns, strict=True), strict=True)]
    show_table(
        Table(("largest difference (mean)", *PRECISIONS), rows),
        options.save,
        pictures=len(lines) - 1,
        computed_again=sample,
    )


if __name__ == "__main__":
    main()
