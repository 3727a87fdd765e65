"""The two sides of the benchmark of fetching, each a command that fetches the same URLs."""

import hashlib
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

SHARD_OF_A_PROCESS = 250
"""Pairs of a shard of img2dataset where it has several processes: it shares work by shards."""


PAIRS_PER_SHARD = 10_000
"""Pairs of a shard at the defaults of both sides."""


def write_pairs(root: str, urls: list[str], per_shard: int = PAIRS_PER_SHARD) -> None:
    """Writes the shards of pairs that ours reads."""
    from schemas.columns import table_from_records, write_table
    from schemas.records import PAIR_SCHEMA, Pair, pair_key
    from schemas.shards import DatasetLayout
    from schemas.storage import commit_file

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
    for shard, start in enumerate(range(0, len(pairs), per_shard)):
        table = table_from_records(pairs[start : start + per_shard], PAIR_SCHEMA)
        with commit_file(DatasetLayout(root).pairs(shard)) as file:
            content = hashlib.sha256(repr(table["key"].to_pylist()).encode()).hexdigest()
            write_table(table, file, {"fingerprint": content})


def run_ours(root: str, settings: dict[str, Any]) -> None:
    """Fetches the shards of a dataset, as one worker of the pipeline does."""
    from schemas.memory import keep_freed_memory, large_imports

    keep_freed_memory()  # first of all, as a worker does
    with large_imports():  # as it does, too
        from pipeline.config import FetchConfig
        from pipeline.fetch.overlap import ShardsAtOnce
        from pipeline.fetch.shard import fetch_shard
        from pipeline.fetch.sharing import FetchSession
        from schemas.shards import DatasetLayout

    config, layout = FetchConfig(**settings), DatasetLayout(root)
    with FetchSession(config) as session:
        shards = ShardsAtOnce(
            lambda shard: fetch_shard(layout, shard, config, session),
            config.shards_at_once,
            session.abandon,
        )
        for shard in range(len(list(Path(root, "pairs").glob("*.parquet")))):
            shards.add(shard)
        import pandas  # noqa: F401 - PyArrow asks for it at its first array; a worker has it from Beam

        shards.finish()


def our_command(
    root: Path, port: int, processes: int | None, shards_at_once: int | None = None
) -> list[str]:
    """Returns our command: at our defaults, or with so many decoding processes or shards."""
    settings: dict[str, Any] = {"allow_networks": ["127.0.0.0/8"], "allow_ports": [port]}
    if processes is not None:
        settings["decode_processes"] = processes
    if shards_at_once is not None:
        settings["shards_at_once"] = shards_at_once
    return [sys.executable, __file__, str(root), json.dumps(settings)]


def their_command(urls: Path, output: Path, processes: int | None) -> list[str]:
    """Returns img2dataset's command: at its defaults, or with so many processes."""
    per_shard = PAIRS_PER_SHARD if processes is None else SHARD_OF_A_PROCESS
    command = [
        *(sys.executable, "-m", "img2dataset.main", f"--url_list={urls}"),
        *(f"--output_folder={output}", "--input_format=parquet", "--url_col=url"),
        *("--caption_col=caption", "--output_format=webdataset", "--resize_mode=keep_ratio"),
        *("--image_size=256", "--encode_quality=95", f"--number_sample_per_shard={per_shard}"),
    ]
    if processes is not None:
        command += [f"--processes_count={processes}", "--thread_count=32"]
    return command


def stored_images(tar_paths: list[Path]) -> dict[str, bytes]:
    """Returns URL to stored JPEG of some tars."""
    images = {}
    for path in tar_paths:
        with tarfile.open(path) as tar:
            for member in tar.getmembers():
                if member.name.endswith(".json"):
                    values = json.load(tar.extractfile(member))  # type: ignore[arg-type]
                    image = tar.extractfile(member.name.removesuffix("json") + "jpg")
                    images[values["url"]] = image.read()  # type: ignore[union-attr]
    return images


def main() -> None:
    """Fetches with the settings that are given as JSON; nothing else is imported before."""
    root, text = sys.argv[1:]
    values = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in json.loads(text).items()
    }
    run_ours(root, values)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    main()
