"""What is curated on a cluster in tests: part of the demo's corpus, in a bucket of a store."""

import csv
import tempfile
from pathlib import Path

import s3fs

from tests.curations import CORPUS, contents

BUCKET = "corpus"
PICTURES = 96


def put_corpus() -> None:
    """Makes the bucket, and puts pairs and pictures there."""
    s3fs.S3FileSystem.clear_instance_cache()
    store = s3fs.S3FileSystem(use_listings_cache=False)
    store.mkdir(BUCKET)
    with (CORPUS / "pairs.tsv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))[:PICTURES]
    lines = ["url\tcaption"]
    for number, row in enumerate(rows):
        store.put_file(str(CORPUS / row["file"]), f"{BUCKET}/images/{number}.png")
        lines.append(f"{number}.png\t{row['caption']}")
    store.pipe_file(f"{BUCKET}/pairs.tsv", "\n".join(lines).encode())


def words_for(model: str) -> list[str]:
    """Returns the command without its folder and runner.

    Args:
        model: that scores, as the command names it.
    """
    return (
        f"--pairs s3://{BUCKET}/pairs.tsv --read.image-folder s3://{BUCKET}/images "
        "--read.pairs-per-shard 8 --pack.samples-per-shard 16 --levels.num-levels 4 "
        "--deduplicate.threshold 0.95 --fetch.decode-processes 1 --fetch.image-size 48 "
        f"--score.device cpu --score.model {model} --score.batch-size 4 "
        "--score.threads 1 --score.decode-threads 1"
    ).split()


def made_on_store(name: str) -> dict[str, str]:
    """Returns the hash of every file of a dataset in the bucket."""
    with tempfile.TemporaryDirectory() as folder:
        store = s3fs.S3FileSystem(use_listings_cache=False)
        store.get(f"{BUCKET}/{name}", f"{folder}/{name}", recursive=True)
        found = contents(Path(folder) / name)
    # They name the dataset's own address.
    return {file: value for file, value in found.items() if file != "croissant.json"}
