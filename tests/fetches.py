"""What the tests of the fetch stage share: pictures, settings, pairs and what was fetched."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.config import FetchConfig
from schemas.columns import read_table, table_from_records, write_table
from schemas.records import FETCHED_SCHEMA, PAIR_SCHEMA, REJECTION_SCHEMA, Pair, pair_key
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.storage import commit_file, open_read
from tests.web_server import ALLOWED_HOST, WebServer, unused_port


def picture(seed: int, width: int = 120, height: int = 80, file_format: str = "JPEG") -> bytes:
    """Returns a picture file of soft random colours."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, file_format)
    return file.getvalue()


def config(server: WebServer | None = None, **settings: Any) -> FetchConfig:
    values: dict[str, Any] = {
        "allow_networks": (f"{ALLOWED_HOST}/32",),
        "allow_ports": (80, 443, server.port if server else 80),
        "decode_processes": 1,
        "image_size": 64,
    }
    return FetchConfig(**{**values, **settings})


def write_pairs(
    layout: DatasetLayout, rows: list[tuple[str | None, str]], shard: int = 0, **more: Any
) -> list[Pair]:
    values = {"conversations": None, "source": "test", "expected_hash": None, **more}
    pairs = [
        Pair(key=pair_key(url or "", caption), url=url, caption=caption, **values)
        for url, caption in rows
    ]
    pairs.sort(key=lambda pair: pair.key)
    content = hashlib.sha256(repr(pairs).encode()).hexdigest()
    with commit_file(layout.pairs(shard)) as file:
        write_table(table_from_records(pairs, PAIR_SCHEMA), file, {"fingerprint": content})
    return pairs


def fetched_rows(layout: DatasetLayout, shard: int = 0) -> list[dict[str, Any]]:
    with open_read(layout.fetched(shard, "parquet")) as file:
        return list(read_table(file, FETCHED_SCHEMA).to_pylist())


def rejected_rows(layout: DatasetLayout, shard: int = 0) -> list[dict[str, Any]]:
    with open_read(layout.rejected(Stage.FETCH, shard)) as file:
        return list(read_table(file, REJECTION_SCHEMA).to_pylist())


def stats(layout: DatasetLayout, shard: int = 0) -> dict[str, Any]:
    return dict(json.loads(Path(layout.fetched(shard, "_stats.json")).read_text()))


def committed_bytes(layout: DatasetLayout) -> list[bytes]:
    paths = [
        layout.fetched(0, "tar"),
        layout.fetched(0, "parquet"),
        layout.rejected(Stage.FETCH, 0),
    ]
    return [Path(path).read_bytes() for path in paths]


def many_rows(server: WebServer) -> list[tuple[str | None, str]]:
    rows: list[tuple[str | None, str]] = [
        (server.serve(f"/{number}.jpg", picture(number)), f"picture {number}")
        for number in range(20)
    ]
    rows.append((server.url("/missing.jpg"), "nothing"))
    rows.append((server.serve("/page.jpg", b"<html>no picture</html>"), "a page"))
    rows.append((server.serve("/cut.jpg", picture(1)[:900]), "half a picture"))
    rows.append((f"http://{ALLOWED_HOST}:{unused_port()}/x.jpg", "a dead port"))
    rows.append((None, "text alone"))
    return rows
