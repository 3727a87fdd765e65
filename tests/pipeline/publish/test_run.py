"""A publication opens in each reader with the right types, images and counts."""

import dataclasses
import io
import json
import os
import subprocess
from pathlib import Path

import duckdb
import numpy as np
import pandas
import polars
import pytest
import webdataset
import wids
import yaml
from PIL import Image

from pipeline.cli import run
from pipeline.dataset.train_samples import TarReaders
from pipeline.publish.card import About
from pipeline.publish.run import check_croissant, publish_dataset
from pipeline.publish.samples import sayable
from schemas.columns import read_table
from schemas.errors import ConfigError, DatasetError
from schemas.records import TRAIN_SCHEMA, FetchedSample, hash_share, json_text, pair_key
from schemas.shards import DatasetLayout
from tests.curations import quiet_console
from tests.datasets import fetched_sample, finish, jpeg, write_dataset, write_fetched

os.environ["HF_HUB_OFFLINE"] = "1"
SAMPLES = 40
RATIO = 0.2

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # of webdataset and wids
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:String specifications:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def mixed_sample(number: int) -> FetchedSample:
    """Returns a pair, one of several captions, a conversation of one or three images, or of none.

    Pairs alone stand among the first five, after which readers take types as known.
    """
    sample = fetched_sample(number, is_text=number % 5 == 4)
    turns = json_text([{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "Yes."}])
    if number % 5 == 1:
        captions = json_text([sample.caption, "another"])
        return dataclasses.replace(
            sample, captions=captions, key=pair_key(str(sample.url), captions)
        )
    if number % 5 == 2:
        key = pair_key(str(sample.url), turns)
        return dataclasses.replace(sample, conversations=turns, key=key, sample_id=f"id{number}")
    if number % 5 == 3:
        more = [f"https://images.example/{number}/{place}.jpg" for place in (1, 2)]
        sizes = {name: getattr(sample, name) for name in ("width", "height")}
        other = {
            **sizes,
            "original_width": 24,
            "original_height": 16,
            "sha256": "a" * 64,
            "pixel_hash": "b" * 32,
        }
        return dataclasses.replace(
            sample,
            conversations=turns,
            more_urls=json_text(more),
            more_images=[other, other],
            key=pair_key("\n".join([str(sample.url), *more]), turns),
        )
    return sample


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("mixed")
    rows = sorted(map(mixed_sample, range(SAMPLES)), key=lambda row: row.key)
    # Readers take the types from the first rows: let those be the plainest.
    plain = [row for row in rows if row.captions is None and row.conversations is None]
    rows = [*plain[:6], *(row for row in rows if row not in plain[:6])]
    write_fetched(DatasetLayout(str(root)), 0, rows)
    finish(root, is_scored=False)
    return root


@pytest.fixture(scope="module")
def expected(dataset) -> dict[str, dict[str, dict]]:
    """Split to key to row."""
    rows = [
        row
        for path in sorted((dataset / "train").glob("*.parquet"))
        for row in read_table(str(path), TRAIN_SCHEMA).to_pylist()
    ]
    split = {
        row["key"]: "validation" if hash_share(row["url"] or row["key"]) < RATIO else "train"
        for row in rows
    }
    return {
        name: {row["key"]: row for row in rows if split[row["key"]] == name}
        for name in ("train", "validation")
    }


def publish(root: Path, out: Path, form: str, size: int | None = 9, ratio: float = RATIO) -> Path:
    about = About(name="Mixed", form=form, licence="cc-by-4.0", language=("en",))
    publish_dataset(str(root), str(out), about, ratio, size, quiet_console())
    return out


@pytest.fixture(scope="module")
def tars(dataset, tmp_path_factory) -> Path:
    return publish(dataset, tmp_path_factory.mktemp("hub") / "tars", "webdataset")


@pytest.fixture(scope="module")
def tables(dataset, tmp_path_factory) -> Path:
    return publish(dataset, tmp_path_factory.mktemp("hub") / "tables", "parquet")


def images_of(row: dict) -> list[bytes]:
    """Returns the images that a row must have."""
    count = 0 if row["image_format"] is None else 1 + len(row["more_images"] or ())
    return [jpeg(int(row["key"][:8], 16) + number) for number in range(count)]


def pixels(data: bytes | Image.Image) -> bytes:
    image = data if isinstance(data, Image.Image) else Image.open(io.BytesIO(data))
    return image.convert("RGB").tobytes()


@pytest.mark.parametrize("is_streaming", [False, True], ids=["whole", "streamed"])
def test_datasets_opens_the_tars(tars, expected, tmp_path, is_streaming):
    import datasets

    found = datasets.load_dataset(str(tars), streaming=is_streaming, cache_dir=str(tmp_path))
    assert set(found) == {"train", "validation"}
    for split, rows in expected.items():
        samples = {sample["json"]["key"]: sample for sample in found[split]}
        assert samples.keys() == rows.keys()
        for key, row in rows.items():
            sample = samples[key]
            images = [sample[name] for name in ("jpg", "1.jpg", "2.jpg")]
            assert [pixels(image) for image in images if image is not None] == [
                pixels(image) for image in images_of(row)
            ]
            assert sample["txt"] == row["caption"]
            assert sample["json"]["captions"] == json.loads(row["captions"] or "null") or [
                row["caption"]
            ]
            turns = json.loads(sample["json"]["conversations"])
            assert turns == json.loads(row["conversations"] or "[]")


@pytest.mark.parametrize("is_streaming", [False, True], ids=["whole", "streamed"])
def test_datasets_opens_the_tables(tables, expected, tmp_path, is_streaming):
    import datasets

    found = datasets.load_dataset(str(tables), streaming=is_streaming, cache_dir=str(tmp_path))
    for split, rows in expected.items():
        samples = {sample["key"]: sample for sample in found[split]}
        assert samples.keys() == rows.keys()
        for key, row in rows.items():
            sample = samples[key]
            images = [sample["image"], *(sample["other_images"] or ())]
            assert [pixels(image) for image in images if image is not None] == [
                pixels(image) for image in images_of(row)
            ]
            turns = json.loads(row["conversations"] or "null")
            assert sample["conversations"] == turns
            assert sample["captions"] == (json.loads(row["captions"] or "null") or [row["caption"]])
            assert sample["given_level"] is None


def test_webdataset_and_wids_open_the_tars(tars, expected, tmp_path):
    for split, rows in expected.items():
        urls = [str(path) for path in sorted((tars / split).glob("*.tar"))]
        samples = {s["__key__"]: s for s in webdataset.WebDataset(urls, shardshuffle=False)}
        assert samples.keys() == rows.keys()
        for key, row in rows.items():
            names = [name for name in ("jpg", "1.jpg", "2.jpg") if name in samples[key]]
            assert [samples[key][name] for name in names] == images_of(row)
            assert samples[key]["txt"].decode() == row["caption"]
        index = wids.ShardListDataset(
            str(tars / split / "index.json"), cache_dir=str(tmp_path / split)
        )
        assert len(index) == len(rows)
        assert {index[place]["__key__"] for place in range(len(index))} == set(rows)


def test_duckdb_pandas_and_polars_open_the_tables(tables, expected):
    for split, rows in expected.items():
        pattern = f"{tables}/{split}/*.parquet"
        with duckdb.connect() as connection:
            found = connection.sql(
                f"SELECT key, image.bytes, len(other_images), conversations[2].value, width "
                f"FROM '{pattern}'"
            ).fetchall()
        frames = (pandas.read_parquet(f"{tables}/{split}"), polars.read_parquet(pattern))
        assert [len(found), *map(len, frames)] == [len(rows)] * 3
        for key, image, others, answer, width in found:
            images = images_of(rows[key])
            assert image == (images[0] if images else None)
            assert (others or 0) == max(0, len(images) - 1)
            assert answer == (None if rows[key]["conversations"] is None else answer)
            assert width == rows[key]["width"]
        pandas_images = dict(zip(frames[0]["key"], frames[0]["image"], strict=True))
        polars_images = {row["key"]: row["image"] for row in frames[1].to_dicts()}
        for key, row in rows.items():
            first = next(iter(images_of(row)), None)
            assert (pandas_images[key] or {"bytes": None})["bytes"] == first
            assert (polars_images[key] or {"bytes": None})["bytes"] == first
        assert frames[1].schema["width"] == polars.Int32
        assert frames[1].schema["captions"] == polars.List(polars.String)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_energon_opens_the_tars(tars, expected):
    energon = pytest.importorskip("megatron.energon", reason="Megatron-Energon is not installed")

    @energon.stateless
    def cooked(sample):
        return energon.TextSample(**energon.basic_sample_keys(sample), text=sample["txt"])

    cookers = {"cookers": (energon.Cooker(cooked),)}
    encoder = type("Encoder", (energon.DefaultTaskEncoder,), cookers)
    workers = energon.WorkerConfig(rank=0, world_size=1, num_workers=0)
    for part, split in (("train", "train"), ("val", "validation")):
        found = energon.get_val_dataset(
            str(tars),
            split_part=part,
            worker_config=workers,
            batch_size=1,
            task_encoder=encoder(),
        )
        texts = [text for batch in energon.get_loader(found) for text in batch.text]
        assert sorted(texts) == sorted(row["caption"] for row in expected[split].values())


def test_what_energon_reads_says_where_each_sample_begins(tars, expected):
    info = json.loads((tars / ".nv-meta" / ".info.json").read_text())["shard_counts"]
    assert info == yaml.safe_load((tars / ".nv-meta" / ".info.yaml").read_text())["shard_counts"]
    parts = yaml.safe_load((tars / ".nv-meta" / "split.yaml").read_text())["split_parts"]
    for part, split in (("train", "train"), ("val", "validation")):
        keys = []
        for name in parts[part]:
            data = (tars / name).read_bytes()
            starts = np.frombuffer((tars / f"{name}.idx").read_bytes(), "<u8").tolist()
            assert len(starts) == info[name] + 1
            keys += [data[start : start + 32].decode() for start in starts[:-1]]
            assert not data[starts[-1] : starts[-1] + 1024].strip(b"\0")
        assert set(keys) == set(expected[split])


def test_the_card_tells_what_is_there_and_every_file_has_its_hash(tars, tables, expected):
    for folder in (tars, tables):
        _, header, body = (folder / "README.md").read_text().split("---\n", 2)
        values = yaml.safe_load(header)
        assert values["license"] == "cc-by-4.0"
        told = {split["name"]: split["num_examples"] for split in values["dataset_info"]["splits"]}
        assert told == {split: len(rows) for split, rows in expected.items()}
        assert "## Opt-outs" in body and "| robots.txt | yes | 0 |" in body
        check = subprocess.run(
            ["sha256sum", "--check", "--strict", "--quiet", "checksums.sha256"],
            cwd=folder,
            capture_output=True,
            check=False,
        )
        assert (check.returncode, check.stdout) == (0, b"")
        listed = {
            line.split("  ")[1]
            for line in (folder / "checksums.sha256").read_text().split("\n")
            if line
        }
        files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        assert files - listed == {"checksums.sha256", ".aligngpt/publish.json"}


def test_croissant_is_valid_and_what_is_not_is_refused(tars, tables, dataset):
    for folder in (tars, tables, dataset):
        check_croissant(json.loads((folder / "croissant.json").read_text()))
    values = json.loads((tars / "croissant.json").read_text())
    values["distribution"][0].pop("sha256")
    with pytest.raises(DatasetError, match="not valid"):
        check_croissant(values)


def test_a_publication_that_was_stopped_goes_on_to_the_same_bytes(
    dataset, tars, tmp_path, monkeypatch
):
    read, calls = TarReaders.images, []

    def dying(self, path, row):
        calls.append(row["key"])
        if len(calls) == 15:
            raise KeyboardInterrupt
        return read(self, path, row)

    monkeypatch.setattr(TarReaders, "images", dying)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        publish(dataset, out, "webdataset")
    assert not (out / "README.md").exists()
    leftover = out / "train" / f".train-00001-of-00004.tar.{'0' * 32}.tmp"
    leftover.write_bytes(b"half")
    publish(dataset, out, "webdataset")
    assert not leftover.exists()
    assert len(calls) == 15 + SAMPLES - 9
    names = {path.relative_to(out) for path in out.rglob("*") if path.is_file()}
    assert names == {path.relative_to(tars) for path in tars.rglob("*") if path.is_file()}
    for name in names - {Path(".aligngpt/publish.json")}:
        assert (out / name).read_bytes() == (tars / name).read_bytes()


def test_where_files_lay_on_the_machine_is_not_told():
    row = {"url": "/home/me/pictures/cats/1.png", "key": "k"}
    assert sayable(row, ["/home/me/pictures"])["url"] == "cats/1.png"
    assert sayable(row, ["/srv"])["url"] == "1.png"
    assert sayable({"url": "https://a.example/1"}, ["/srv"]) == {"url": "https://a.example/1"}


def test_a_scored_dataset_has_its_levels_in_the_card(tmp_path):
    write_dataset(tmp_path / "data")
    finish(tmp_path / "data")
    out = publish(tmp_path / "data", tmp_path / "out", "parquet", size=None, ratio=0.0)
    assert not (out / "validation").exists()
    assert "| 4 |" in (out / "README.md").read_text()
    with Image.open(out / "levels.png") as picture:
        assert picture.width == 920


def test_what_stands_in_the_way_is_not_touched(dataset, tables, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds what no publication wrote \(notes\.txt\)"):
        publish(dataset, tmp_path, "parquet")
    with pytest.raises(ConfigError, match="form was 'parquet' there, this run has 'webdataset'"):
        publish(dataset, tables, "webdataset")
    with pytest.raises(ConfigError, match="lie in each other"):
        publish(dataset, dataset / "hub", "parquet")
    assert run(["publish", str(dataset), "--out", str(tables), "--validation-ratio", "2"]) == 2
    assert "--validation-ratio" in capsys.readouterr().err
