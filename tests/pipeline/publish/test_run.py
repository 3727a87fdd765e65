"""A publication opens in each reader with the right types, images and counts."""

import json
import os
from pathlib import Path

import duckdb
import pandas
import polars
import pytest
import webdataset
import wids

from pipeline.cli import run
from pipeline.dataset.train_samples import TarReaders
from schemas.errors import ConfigError
from tests.publications import SAMPLES, images_of, pixels, publish

os.environ["HF_HUB_OFFLINE"] = "1"

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # of webdataset and wids
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:String specifications:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


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


@pytest.mark.slow
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


def test_what_stands_in_the_way_is_not_touched(dataset, tables, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds what no publication wrote \(notes\.txt\)"):
        publish(dataset, tmp_path, "parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(ConfigError, match="form was 'parquet' there, this run has 'webdataset'"):
        publish(dataset, tables, "webdataset")
    assert not (tables / ".aligngpt" / "_run").exists()
    with pytest.raises(ConfigError, match="lie in each other"):
        publish(dataset, dataset / "hub", "parquet")
    assert run(["publish", str(dataset), "--out", str(tables), "--validation-ratio", "2"]) == 2
    assert "--validation-ratio" in capsys.readouterr().err
