import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ImageColor

from schemas.errors import ConfigError, DatasetError
from tests.training.conftest import picture
from training.data.dataset import TrainDataset, open_images


def test_rows_and_pictures_are_read_from_all_shards(caption_dataset: str) -> None:
    dataset = TrainDataset([caption_dataset])
    assert len(dataset) == 48
    sample = dataset[40]  # of the third shard
    assert sample.caption.endswith("red star")
    assert open_images(sample)[0].convert("RGB").getpixel((5, 5)) == (255, 0, 0)


def test_the_pictures_of_a_sample_are_read_in_their_order(
    make_dataset: Any, tmp_path: Path
) -> None:
    turns = json.dumps([{"from": "human", "value": "<image><image>"}])
    colours = ("red", "blue", "green")
    sample = {
        "url": "a",
        "caption": "",
        "conversations": turns,
        "image": picture(colours[0]),
        "more_images": [picture(colour) for colour in colours[1:]],
        "level": None,
    }
    dataset = TrainDataset([make_dataset(tmp_path / "data", [sample, {**sample, "url": "b"}])])
    for row in range(2):
        found = [image.getpixel((0, 0)) for image in open_images(dataset[row])]
        assert found == [ImageColor.getrgb(colour) for colour in colours]


def test_a_damaged_picture_is_an_error_that_names_shard_and_key(
    make_dataset: Any, tmp_path: Path
) -> None:
    whole = {"url": "a", "caption": "a red cat", "image": b"\x89PNG\r\n but no more", "level": 1}
    dataset = TrainDataset([make_dataset(tmp_path / "data", [whole])])
    with pytest.raises(DatasetError, match=f"{dataset[0].key} in .*000000.tar"):
        open_images(dataset[0])


def test_a_folder_that_is_no_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no manifest.json"):
        TrainDataset([str(tmp_path)])


def test_pictures_without_levels_are_refused_where_the_model_is_told_them(
    make_dataset: Any, caption_dataset: str, conversation_dataset: str, tmp_path: Path
) -> None:
    dataset = TrainDataset([caption_dataset, conversation_dataset])
    dataset.check_levels(4, are_told=False)
    with pytest.raises(ConfigError, match=f"^{conversation_dataset} has no alignment levels"):
        dataset.check_levels(4, are_told=True)
    text = {"url": "a", "caption": "words", "image": None, "level": None}
    texts = make_dataset(tmp_path / "data", [text])
    TrainDataset([caption_dataset, texts]).check_levels(4, are_told=True)
    with pytest.raises(ConfigError, match="alignment levels up to 4, but the model has 2"):
        TrainDataset([caption_dataset]).check_levels(2, are_told=True)


def test_rows_that_the_manifest_does_not_know_are_an_error(
    make_dataset: Any, tmp_path: Path
) -> None:
    sample = {"url": "a", "caption": "a red cat", "image": None, "level": 1}
    folder = make_dataset(tmp_path / "data", [sample])
    manifest = json.loads((Path(folder) / "manifest.json").read_text())
    manifest["shards"][0]["samples"] = 2
    (Path(folder) / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DatasetError, match="has 1 rows, the manifest says 2"):
        TrainDataset([folder])


def test_a_picture_is_held_out_with_all_that_is_said_of_it(
    make_dataset: Any, tmp_path: Path
) -> None:
    samples = [
        {"url": f"{i % 50}.png", "caption": f"caption {i}", "image": None, "level": 1}
        for i in range(200)
    ]
    dataset = TrainDataset([make_dataset(tmp_path / "data", samples)])
    held_out = dataset.is_held_out(0.3)
    of_picture: dict[str, set[bool]] = {}
    for sample, is_held in zip(samples, held_out, strict=True):
        of_picture.setdefault(str(sample["url"]), set()).add(bool(is_held))
    assert all(len(sides) == 1 for sides in of_picture.values())
    assert 5 <= sum(True in sides for sides in of_picture.values()) <= 25
    assert np.all(dataset.is_held_out(0.1) <= held_out)
