"""Instruction samples of several images, from LLaVA's JSON to the train shards."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import webdataset
import wids
from PIL import Image

from pipeline.config import PackConfig
from pipeline.dataset.train_shards import write_index
from pipeline.fetch.retry import RetrySession, retry_shard
from pipeline.fetch.shard import fetch_shard
from pipeline.pack.shard import pack_shard
from schemas.columns import read_table
from schemas.records import TRAIN_SCHEMA, pair_key
from schemas.shards import DatasetLayout
from tests.datasets import plan_train_shards
from tests.fetches import config, fetched_rows, picture, rejected_rows, stats
from tests.pipeline.read.test_transform import kept, read_files, reasons, rejected
from tests.web_server import WebServer

TURNS = [
    {"from": "human", "value": "<image> or <image>: which is warm?"},
    {"from": "gpt", "value": "The second."},
]


def read(root: Path, records: list[dict[str, Any]], **settings: Any) -> DatasetLayout:
    path = root.parent / f"{root.name}.json"
    path.write_text(json.dumps(records))
    read_files(root, path, **settings)
    return DatasetLayout(str(root))


def record(*images: str, turns: list[dict[str, str]] | None = None) -> dict[str, Any]:
    return {"image": list(images), "conversations": turns or TURNS}


def sizes(root: Path) -> dict[str, tuple[int, int]]:
    """Returns the size of every image in the train shard, by its member's name."""
    with tarfile.open(root / "train" / "000000.tar") as tar:
        return {
            member.name: Image.open(io.BytesIO(tar.extractfile(member).read())).size
            for member in tar
            if member.name.endswith(".jpg")
        }


def test_all_urls_are_kept_in_their_order_and_decide_the_key(tmp_path: Path) -> None:
    read(tmp_path / "out", [record("a.jpg", "b.jpg"), record("b.jpg", "a.jpg")])
    rows = kept(tmp_path / "out")
    first, second = (str(tmp_path / name) for name in ("a.jpg", "b.jpg"))
    assert {(row["url"], *json.loads(row["more_urls"])) for row in rows} == {
        (first, second),
        (second, first),
    }
    assert {row["key"] for row in rows} == {
        pair_key(f"{one}\n{other}", rows[0]["conversations"])
        for one, other in ((first, second), (second, first))
    }


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (record("a.jpg"), "image_count_mismatch"),
        (record("a.jpg", "b.jpg", "c.jpg"), "image_count_mismatch"),
        ({"image": "a.jpg", "conversations": [*TURNS[1:]]}, "image_count_mismatch"),
        (record("a.jpg", ""), "missing_url"),
        (record("a.jpg", "../../etc/passwd"), "bad_url"),
        (record("a.jpg", "http://[::1"), "bad_url"),
        (record(*["a.jpg"] * 101), "malformed_row"),
        ({"image": ["a.jpg", {"b": 1}], "conversations": TURNS}, "malformed_row"),
        (
            record("a.jpg", "b.jpg", turns=[{"from": "robot", "value": "<image><image>"}]),
            "malformed_row",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_list_of_images_costs_only_its_sample(
    tmp_path: Path, bad: dict[str, Any], reason: str
) -> None:
    read(tmp_path / "out", [bad, record("a.jpg", "b.jpg")])
    assert len(kept(tmp_path / "out")) == 1
    assert reasons(tmp_path / "out") == {reason: 1}


def test_credentials_are_dropped_from_every_url(tmp_path: Path) -> None:
    urls = ["http://me:secret@a.example/1.jpg", "http://me:secret@a.example/2.jpg"]
    read(tmp_path / "out", [record(*urls), record(*urls, "http://me:secret@a.example/3.jpg")])
    assert "secret" not in str(kept(tmp_path / "out") + rejected(tmp_path / "out"))


def test_a_pair_has_one_image(tmp_path: Path) -> None:
    read(tmp_path / "out", [record("a.jpg", "b.jpg")], as_captions=True)
    assert reasons(tmp_path / "out") == {"several_images": 1}


@pytest.fixture
def fetched(tmp_path: Path, web_server: WebServer) -> DatasetLayout:
    """Returns a fetched shard: two images, one image, text alone, and one whose second fails."""
    urls = [web_server.serve(f"/{n}.jpg", picture(n, 80 + n, 60)) for n in range(3)]
    broken = web_server.serve("/broken.jpg", picture(9), status=500)
    one = [{"from": "human", "value": "What is it?\n<image>"}, TURNS[1]]
    records = [
        record(*urls[:2]),
        {"image": urls[2], "conversations": one},
        {"conversations": [{"from": "human", "value": "Hello"}, TURNS[1]]},
        record(urls[2], broken),
    ]
    layout = read(tmp_path / "out", records)
    fetch_shard(layout, 0, config(web_server, retries=0, image_size=500))
    return layout


def test_a_sample_is_kept_with_all_its_images_or_rejected_for_the_one_that_failed(
    fetched: DatasetLayout,
) -> None:
    rows = {(row["original_width"], row["url"] is None): row for row in fetched_rows(fetched)}
    assert set(rows) == {(80, False), (82, False), (None, True)}
    (second,) = rows[80, False]["more_images"]
    assert (second["original_width"], second["width"], len(second["pixel_hash"])) == (81, 81, 32)
    assert rows[82, False]["more_images"] is None
    (failed,) = rejected_rows(fetched)
    assert (failed["reason"], failed["is_retryable"]) == ("server_error", True)
    assert failed["detail"].startswith("image 2 of 2: ")
    assert (stats(fetched)["count"], stats(fetched)["successes"]) == (4, 3)


def test_train_shards_hold_every_image_where_the_table_says(
    fetched: DatasetLayout, web_server: WebServer
) -> None:
    root = Path(fetched.root)
    (plan,) = plan_train_shards(fetched, [0], PackConfig(), has_levels=False)
    pack_shard(fetched, plan, PackConfig())
    rows = read_table(fetched.train(0, "parquet"), TRAIN_SCHEMA).to_pylist()
    pair = next(row for row in rows if row["more_urls"])
    data = Path(fetched.train(0, "tar")).read_bytes()
    places = [
        (pair["image_offset"], pair["image_bytes"]),
        (*pair["more_image_offsets"], *pair["more_image_bytes"]),
    ]
    found = [Image.open(io.BytesIO(data[start : start + length])) for start, length in places]
    assert [image.size for image in found] == [(80, 60), (81, 60)]
    key = pair["key"]
    assert {name: size for name, size in sizes(root).items() if name.startswith(key)} == {
        f"{key}.jpg": (80, 60),
        f"{key}.1.jpg": (81, 60),
    }


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of webdataset and wids
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_and_wids_give_all_images_of_a_sample(
    fetched: DatasetLayout, tmp_path: Path
) -> None:
    (plan,) = plan_train_shards(fetched, [0], PackConfig(), has_levels=False)
    write_index(fetched, [pack_shard(fetched, plan, PackConfig())])
    dataset = webdataset.WebDataset(fetched.train(0, "tar"), shardshuffle=False, empty_check=False)
    samples = list(dataset.decode("pil"))
    assert len(samples) == 3
    pair = next(sample for sample in samples if "1.jpg" in sample)
    assert [pair[name].size for name in ("jpg", "1.jpg")] == [(80, 60), (81, 60)]
    assert len(json.loads(pair["json"]["more_urls"])) == 1
    cache = str(tmp_path / "cache")
    indexed = wids.ShardListDataset(fetched.train_index, cache_dir=cache, transformations=[])
    found = [sorted(name for name in indexed[row] if name.endswith(".jpg")) for row in range(3)]
    assert sorted(found) == [[], [".1.jpg", ".jpg"], [".jpg"]]


def test_a_retry_gains_a_sample_whose_missing_image_came_back(
    fetched: DatasetLayout, web_server: WebServer
) -> None:
    before = {row["key"]: row for row in fetched_rows(fetched)}
    web_server.serve("/broken.jpg", picture(9, 99, 60))
    settings = config(web_server, retries=0, image_size=500)
    retry_shard(fetched, 0, settings, RetrySession("again", ()))
    after = {row["key"]: row for row in fetched_rows(fetched)}
    assert before.items() <= after.items()
    (gained,) = (row for key, row in after.items() if key not in before)
    assert [gained["width"], gained["more_images"][0]["width"]] == [82, 99]
    assert rejected_rows(fetched) == []
    with tarfile.open(fetched.fetched(0, "tar")) as tar:
        assert sum(name.endswith(".jpg") for name in tar.getnames()) == 5
