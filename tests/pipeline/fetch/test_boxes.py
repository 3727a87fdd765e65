import dataclasses
import io
import json
import tempfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.config import FetchConfig
from pipeline.dataset.progress import ShardProgress
from pipeline.dataset.worktimes import StepTime
from pipeline.fetch.boxes import boxes_of, with_own_boxes
from pipeline.fetch.images import images_of
from pipeline.fetch.shard import fetch_pairs
from schemas.errors import RejectReason, SampleRejected
from schemas.records import Pair, json_text, pair_key
from schemas.shards import DatasetLayout
from schemas.stages import Stage

BOX = [0.25, 0.25, 0.75, 0.75]


def pair_of(path: Path, boxes: object) -> Pair:
    return Pair(
        key=pair_key(str(path), "text"),
        url=str(path),
        caption="text",
        conversations=None,
        source="in.csv",
        expected_hash=None,
        kept={"faces": boxes},
    )


@pytest.mark.parametrize(
    "value",
    [
        "no list",
        [[0, 0, 2, 1]],
        [[0.5, 0, 0.5, 1]],
        [1, 2, 3],
        {"a": 1},
        [0.1, 0.1, 0.5, 0.5],
        [[float("nan"), 0, 1, 1]],
        "[[NaN, 0, 1, 1]]",
        ["0011"],
        [["0", "0", "1", "1"]],
        [[False, False, True, True]],
        [{"0": 0, "0.1": 0, "0.8": 0, "1": 0}],
        [[1.1, 0, 1.3, 1]],
        [[10, 20, 200, 300]],
        [[0, 0, 1, 1, 1]],
        f"[[{10**400}, 0, 1, 1]]",
        "[[" * 100_000,
        [[0, 0, 1, 1]] * 10_001,
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_no_box_costs_the_row(value):
    with pytest.raises(SampleRejected) as raised:
        boxes_of(pair_of(Path("x"), value), "faces")
    assert raised.value.reason is RejectReason.BAD_BOXES


def test_boxes_come_as_lists_or_as_json_and_of_several_images_each_has_its_own():
    for value in ([BOX], json.dumps([BOX])):
        assert boxes_of(pair_of(Path("x"), value), "faces") == [tuple(BOX)]
    without: list[Any] = [None, "", []]
    for nothing in without:
        assert boxes_of(pair_of(Path("x"), nothing), "faces") == []
    pair = dataclasses.replace(pair_of(Path("x"), [[], [BOX]]), more_urls=json_text(["y"]))
    images = with_own_boxes(images_of(pair), "faces")
    assert [boxes_of(image, "faces") for image in images] == [[], [tuple(BOX)]]
    short = dataclasses.replace(pair, kept={"faces": [[BOX]]})
    with pytest.raises(SampleRejected):
        boxes_of(with_own_boxes(images_of(short), "faces")[0], "faces")


def test_a_box_that_the_edge_cuts_off_ends_there():
    box = [-0.02, 0.25, Decimal("0.5"), 1.03]
    assert boxes_of(pair_of(Path("x"), [box]), "faces") == [(0.0, 0.25, 0.5, 1.0)]


def test_a_fetched_picture_is_blurred_where_its_row_says(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (96, 128, 3)).astype(np.uint8)
    for name in ("plain.png", "faces.png", "bad.png"):
        Image.fromarray(pixels).save(tmp_path / name)
    values = {"plain.png": None, "faces.png": [BOX], "bad.png": "somewhere"}
    pairs = [pair_of(tmp_path / name, value) for name, value in values.items()]
    config = FetchConfig(
        allow_folders=(str(tmp_path),), decode_processes=1, blur_boxes="faces", image_format="png"
    )
    progress = ShardProgress(DatasetLayout(str(tmp_path / "data")), Stage.FETCH, 0, 3)
    with progress, tempfile.TemporaryFile() as spool:
        kept, rejections = fetch_pairs(pairs, config, None, spool, progress, StepTime(step="fetch"))
        stored = []
        for _, (place,) in kept:
            spool.seek(place.offset)
            stored.append(np.asarray(Image.open(io.BytesIO(spool.read(place.length)))))
    assert [row.reason for row in rejections] == ["bad_boxes"]
    plain, blurred = stored
    assert (plain == pixels).all()
    assert blurred[24:72, 32:96].std() < 0.2 * pixels[24:72, 32:96].std()
    assert (blurred[:8] == pixels[:8]).all()
