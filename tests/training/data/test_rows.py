import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from schemas.columns import read_table, records_from_table, table_from_records, write_table
from schemas.manifest import Manifest
from schemas.records import TRAIN_SCHEMA, TrainSample, hash_share
from schemas.shards import DatasetLayout
from tests.training.conftest import caption_samples, conversation_samples
from training.data import rows
from training.data.dataset import TrainDataset
from training.data.mapped import MappedFolders
from training.data.rows import COLUMNS, HASHES, MappedRows, write_rows


def written(folder: str, into: Path) -> tuple[MappedRows, list[dict[str, Any]]]:
    """Returns the copy of a dataset's rows, and the rows as its tables have them."""
    layout = DatasetLayout(folder)
    manifest = Manifest.from_json(Path(layout.manifest).read_text())
    into.mkdir()
    write_rows(layout, manifest, into)
    paths = [layout.train(int(entry.name), "parquet") for entry in manifest.shards]
    tables = [read_table(io.BytesIO(Path(path).read_bytes()), TRAIN_SCHEMA) for path in paths]
    return MappedRows(into), pa.concat_tables(tables).to_pylist()


def know_hashes(table: Path) -> None:
    """Rewrites a table as if it had the hashes of second pictures."""
    records = records_from_table(read_table(str(table), TRAIN_SCHEMA), TrainSample)
    image = {name: 1 for name in ("width", "height", "original_width", "original_height")}
    for number, record in enumerate(records):
        hashes = [f"{number}.{n}" for n, _ in enumerate(record.more_image_offsets or ())]
        more = [{**image, "sha256": "", "pixel_hash": name} for name in hashes] or None
        records[number] = replace(record, more_images=more)
    write_table(table_from_records(records, TRAIN_SCHEMA), str(table))


@pytest.mark.parametrize("batch_bytes", [1, 1000, 2**16])
def test_every_row_is_found_as_the_tables_have_it(
    make_dataset: Any, tmp_path: Path, batch_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "BATCH_BYTES", batch_bytes)
    monkeypatch.setattr(rows, "RECENT_BATCHES", 2)
    samples = [*conversation_samples(20), *caption_samples(25)]
    folder = make_dataset(tmp_path / "data", samples)
    know_hashes(Path(DatasetLayout(folder).train(0, "parquet")))
    found, expected = written(folder, tmp_path / "rows")
    assert len(found) == len(expected) == 45
    for index in [*range(45), *np.random.default_rng(0).permutation(45).tolist()]:
        row, whole = found[index], expected[index]
        assert {name: row[name] for name in COLUMNS} == {name: whole[name] for name in COLUMNS}
        more = whole["more_images"]
        assert row[HASHES] == (more and [image["pixel_hash"] for image in more])
        assert row["shard"] == index // 16
    assert any(whole["more_images"] for whole in expected)
    assert found.levels.tolist() == [whole["alignment_level"] or 0 for whole in expected]
    assert found.shares.tolist() == [hash_share(w["url"] or w["key"]) for w in expected]
    assert np.concatenate(list(found.all_keys())).tolist() == [
        whole["key"].encode() for whole in expected
    ]


def test_keys_are_ordered_over_all_folders_and_equal_ones_as_they_stand(
    make_dataset: Any, tmp_path: Path
) -> None:
    one = make_dataset(tmp_path / "one", caption_samples(40))
    other = make_dataset(tmp_path / "other", caption_samples(30))
    dataset = TrainDataset([one, other])
    keys = [dataset[i].key for i in range(70)]
    assert len(set(keys)) == 40
    expected = sorted(range(70), key=lambda i: (keys[i], i))
    assert dataset.by_key.tolist() == expected
    assert list(dataset.first_by_key(np.arange(70) % 2 == 0)) == [i for i in expected if i % 2 == 0]


def test_rows_that_ascend_by_key_are_seen_to(make_dataset: Any, tmp_path: Path) -> None:
    samples = caption_samples(40)
    apart, keys = written(make_dataset(tmp_path / "apart", samples), tmp_path / "1")
    assert not apart.facts.is_by_key and apart.facts.longest_key == 32
    by_key = [samples[i] for i in sorted(range(40), key=lambda i: keys[i]["key"])]
    folder = make_dataset(tmp_path / "by_key", by_key)
    assert written(folder, tmp_path / "2")[0].facts.is_by_key
    assert TrainDataset([folder]).by_key.tolist() == list(range(40))


def test_the_copy_is_made_once_for_a_dataset_and_anew_when_its_shards_change(
    make_dataset: Any, tmp_path: Path
) -> None:
    folder = make_dataset(tmp_path / "data", caption_samples(20))
    kept = MappedFolders(tmp_path / "rows", held_rows=0)
    first = [TrainDataset([folder], kept)[i] for i in range(20)]
    table = Path(DatasetLayout(folder).train(0, "parquet"))
    table.rename(tmp_path / "away")  # the copy is enough
    assert [TrainDataset([folder], kept)[i] for i in range(20)] == first
    manifest = Path(folder) / "manifest.json"
    changed = json.loads(manifest.read_text())
    changed["shards"][0]["parquet_sha256"] = "0" * 64
    manifest.write_text(json.dumps(changed))
    with pytest.raises(FileNotFoundError):
        TrainDataset([folder], kept)
