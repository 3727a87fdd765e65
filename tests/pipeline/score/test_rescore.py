import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.cli import run
from pipeline.dataset.derivation import Derivation, write_derivation
from pipeline.score import rescore
from pipeline.score.rescore import rescore_dataset
from pipeline.score.shard import score_shard
from schemas.columns import file_metadata, read_table, write_table
from schemas.errors import DatasetError
from schemas.manifest import Parent
from schemas.records import SCORED_SCHEMA
from schemas.shards import DatasetLayout
from tests.scored import ROWS, add_member, make_shard


def make_dataset(root: Path, tiny_clip: Any, *rows: int, **settings: Any) -> DatasetLayout:
    """Writes scored shards of so many rows each."""
    layout = DatasetLayout(str(root))
    for shard, count in enumerate(rows):
        make_shard(layout, shard, rows=count)
        score_shard(layout, shard, tiny_clip.score_config(**settings))
    return layout


def change_embedding(layout: DatasetLayout, name: str, row: int, values: list[float] | None) -> str:
    """Puts another embedding in a row's place; returns its key."""
    table = read_table(layout.scored(0), SCORED_SCHEMA)
    embeddings = table[name].to_pylist()
    embeddings[row] = None if values is None else np.array(values, np.float16)
    place = table.schema.get_field_index(name)
    field = table.schema.field(name)
    changed = table.set_column(place, field, pa.array(embeddings, field.type))
    write_table(changed, layout.scored(0), file_metadata(table.schema))
    return str(table["key"][row].as_py())


@pytest.mark.parametrize("extension", ["tar", "parquet"])
def test_missing_fetched_file_is_named_with_what_to_do(
    tiny_clip: Any, tmp_path: Path, extension: Any
) -> None:
    layout = make_dataset(tmp_path, tiny_clip, 5)
    path = Path(layout.fetched(0, extension))
    path.unlink()
    with pytest.raises(DatasetError, match=f"{path} is missing: put back .* fetch shard 0 again"):
        rescore_dataset(layout.root, sample=5)


@pytest.mark.parametrize("table", ["fetched", "scored"])
def test_damaged_table_is_named_with_what_to_do(tiny_clip: Any, tmp_path: Path, table: str) -> None:
    layout = make_dataset(tmp_path, tiny_clip, 5)
    path = Path(layout.scored(0) if table == "scored" else layout.fetched(0, "parquet"))
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DatasetError, match=f"{path} is no whole Parquet file.* shard 0 again"):
        rescore_dataset(layout.root, sample=5)


@pytest.mark.parametrize("kept_bytes", [0, 60])
def test_stored_image_that_cannot_be_decoded_is_named_with_its_key(
    tiny_clip: Any, tmp_path: Path, kept_bytes: int
) -> None:
    layout = make_dataset(tmp_path, tiny_clip, 7)
    path = layout.fetched(0, "tar")
    with tarfile.open(path) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    name = [name for name in members if not name.endswith((".txt", ".json"))][3]
    members[name] = members[name][:kept_bytes].ljust(len(members[name]), b"\0")
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for member, content in members.items():
            add_member(tar, member, content)
    key = name.split(".")[0]
    said = f"{path}: the image of pair {key} cannot be decoded .*: fetch shard 0 again"
    with pytest.raises(DatasetError, match=said):
        rescore_dataset(layout.root, sample=7)


def test_sample_is_as_large_as_asked_for_over_shards_of_any_sizes(
    tiny_clip: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = make_dataset(tmp_path, tiny_clip, 23, 2, 0, 1, 0)
    assert [rescore_dataset(layout.root, count).sampled for count in (20, 26, 99)] == [20, 26, 26]
    monkeypatch.setattr(rescore, "MOST_SHARDS", 2)
    assert rescore_dataset(layout.root, sample=26).sampled == 26


def test_sample_falls_on_a_shard_by_the_rows_that_it_holds(tiny_clip: Any, tmp_path: Path) -> None:
    layout = make_dataset(tmp_path, tiny_clip, 20, 5)
    small = set(read_table(layout.scored(1), SCORED_SCHEMA)["key"].to_pylist())
    found = [row.key in small for row in rescore_dataset(layout.root, sample=10).worst]
    assert (len(found), sum(found)) == (10, 2)


@pytest.mark.parametrize("name", ["image_embedding", "text_embedding"])
@pytest.mark.parametrize("values", [[0.5] * 23, [0.5] * 25, None])
def test_embedding_of_another_width_is_named_with_its_key(
    tiny_clip: Any, tmp_path: Path, name: str, values: list[float] | None
) -> None:
    layout = make_dataset(tmp_path, tiny_clip, 6)
    key = change_embedding(layout, name, 4, values)
    said = f"{layout.scored(0)}: {name} of pair {key} has {len(values or [])} values in place of 24"
    with pytest.raises(DatasetError, match=f"{said}: score shard 0 again"):
        rescore_dataset(layout.root, sample=1)


def test_scores_without_embeddings_are_rescored(tiny_clip: Any, tmp_path: Path) -> None:
    layout = make_dataset(tmp_path, tiny_clip, 6, keep_embeddings=False)
    assert rescore_dataset(layout.root, sample=6).is_reproduced
    change_embedding(layout, "image_embedding", 2, [0.5] * 24)
    with pytest.raises(DatasetError, match="has 24 values in place of 0"):
        rescore_dataset(layout.root, sample=6)


def test_sample_is_rescored_to_the_same_scores(tiny_clip: Any, tmp_path: Path) -> None:
    layout = DatasetLayout(str(tmp_path))
    for shard in range(2):
        make_shard(layout, shard)
        score_shard(layout, shard, tiny_clip.score_config())
    report = rescore_dataset(layout.root, sample=9)
    assert report.sampled == 9 and report.is_reproduced
    assert report.largest_difference <= 1e-5
    assert rescore_dataset(layout.root, sample=1000).sampled == 2 * ROWS
    assert str(report).startswith("reproduced: 9 scores of tiny-clip tiny-clip.pt fp32")


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("bf16", 5e-3)])
def test_scores_are_recomputed_within_the_tolerance_beside_other_pairs(
    tiny_clip: Any, tmp_path: Path, precision: Any, tolerance: float
) -> None:
    layout = DatasetLayout(str(tmp_path))
    make_shard(layout, 0)
    score_shard(layout, 0, tiny_clip.score_config(precision=precision, batch_size=7))
    report = rescore_dataset(layout.root, sample=10)
    assert report.tolerance == tolerance
    assert report.sampled == 10 and report.largest_difference <= tolerance


def test_rescoring_finds_a_score_that_was_tampered_with(tiny_clip: Any, tmp_path: Path) -> None:
    layout = DatasetLayout(str(tmp_path))
    make_shard(layout, 0)
    score_shard(layout, 0, tiny_clip.score_config())
    table = read_table(layout.scored(0), SCORED_SCHEMA)
    scores = table["clip_score"].to_numpy().copy()
    scores[7] += 0.01
    column = table.schema.get_field_index("clip_score")
    changed = table.set_column(column, table.schema.field(column), [scores])
    metadata = file_metadata(table.schema)
    write_table(changed, layout.scored(0), metadata)
    report = rescore_dataset(layout.root, sample=ROWS)
    assert not report.is_reproduced
    assert report.worst[0].key == table["key"][7].as_py()
    assert report.worst[0].key in str(report)


def test_rescoring_with_another_model_fails_and_says_so(tiny_clip: Any, tmp_path: Path) -> None:
    layout = DatasetLayout(str(tmp_path))
    weights = tmp_path / "weights.pt"
    shutil.copy(tiny_clip.weights, weights)
    make_shard(layout, 0)
    score_shard(layout, 0, tiny_clip.score_config(pretrained=str(weights)))
    moved = rescore_dataset(layout.root, sample=5, pretrained=str(tiny_clip.weights))
    assert moved.is_reproduced
    state = torch.load(weights)
    state["visual.proj"] *= -1
    torch.save(state, weights)
    with pytest.raises(DatasetError, match="not the model that made these scores: weights_sha256"):
        rescore_dataset(layout.root, sample=5)


def test_rescoring_what_is_not_scored_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="holds no scores: run `score` first"):
        rescore_dataset(str(tmp_path), sample=5)
    parent = Parent(folder="web/", manifest_sha256="0" * 64, samples=1, taken=1, config={})
    chosen = Derivation(
        command="select", fingerprint="f", settings={}, parents=(parent,), model=None, rejected={}
    )
    write_derivation(DatasetLayout(str(tmp_path)), chosen)
    with pytest.raises(DatasetError, match="they lie where its samples were taken from, web/"):
        rescore_dataset(str(tmp_path), sample=5)


@pytest.mark.slow
def test_sample_is_spread_over_all_shards_and_as_large_as_asked_for(
    tiny_clip: Any, tmp_path: Path
) -> None:
    layout = DatasetLayout(str(tmp_path))
    shard_of: dict[str, int] = {}
    for shard in range(4):
        shard_of |= {sample.key: shard for sample in make_shard(layout, shard, rows=8)}
        score_shard(layout, shard, tiny_clip.score_config())
    report = rescore_dataset(layout.root, sample=9)
    assert report.sampled == 9
    found = [shard_of[row.key] for row in report.worst]
    assert sorted(found) == [0, 0, 0, 1, 1, 2, 2, 3, 3]


def test_scores_of_nothing_are_not_reproduced(tiny_clip: Any, tmp_path: Path) -> None:
    layout = DatasetLayout(str(tmp_path))
    make_shard(layout, 0, rows=0)
    score_shard(layout, 0, tiny_clip.score_config())
    with pytest.raises(DatasetError, match="no scored pair"):
        rescore_dataset(layout.root, sample=5)


def test_rescore_command_says_whether_the_scores_are_reproduced(
    tiny_clip: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = DatasetLayout(str(tmp_path))
    make_shard(layout, 0)
    score_shard(layout, 0, tiny_clip.score_config())
    assert run(["rescore", "--sample", "5", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("reproduced: 5 scores of tiny-clip")
    assert run(["rescore", str(tmp_path / "none")]) == 2
