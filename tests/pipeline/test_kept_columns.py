"""Columns of the input go through the whole job: tables, members, metadata, and a retry."""

import dataclasses
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.cli import run
from pipeline.config import ReadConfig
from pipeline.job.run import Job, run_job
from pipeline.report.verify import verify_dataset
from schemas.columns import kept_fields
from tests.curations import curate, quiet_console

pytestmark = pytest.mark.slow

KEPT = {
    "uid": pa.array(["a", "b", None, "d"]),
    "similarity": pa.array([0.25, None, 0.75, 1.0], pa.float32()),
    "told_width": pa.array([1, 2, 3, None], pa.int16()),
    "tags": pa.array([["x"], [], None, ["y", "z"]]),
}


@pytest.fixture(scope="module")
def dataset(config, tmp_path_factory):
    """A dataset of an input with columns of its own, one of its images missing at first."""
    folder = tmp_path_factory.mktemp("kept")
    images = folder / "images"
    images.mkdir()
    for n in range(4):
        paint(images / f"{n}.png", n)
    (images / "3.png").unlink()
    columns = {name.replace("told_", ""): column for name, column in KEPT.items()}
    pairs = {"url": [f"{n}.png" for n in range(4)], "caption": [f"number {n}" for n in range(4)]}
    pq.write_table(pa.table({**pairs, **columns}), folder / "in.parquet")
    read = ReadConfig(
        keep_columns=("uid", "similarity", "width=told_width", "tags"),
        image_folder=str(images),
        pairs_per_shard=3,
    )
    config = dataclasses.replace(config, read=read)
    root = folder / "out"
    manifest, _ = curate(config, folder / "in.parquet", root)
    assert manifest.kept == 3
    paint(images / "3.png", 3)
    run_job(
        Job(
            root=str(root),
            config=dataclasses.replace(
                config, fetch=dataclasses.replace(config.fetch, allow_folders=(str(images),))
            ),
            stages=config.stages[1:],
            has_report=True,
            retry=("file_not_found",),
        ),
        quiet_console(),
    )
    return root


def paint(path: Path, number: int) -> None:
    Image.effect_mandelbrot((64, 64), (-2 + number / 4, -1, 1, 1), 20 + number).save(path)


@pytest.mark.parametrize("folder", ["pairs", "fetched", "train"])
def test_tables_have_the_columns_with_their_types(dataset, folder):
    tables = [pq.read_table(path) for path in sorted((dataset / folder).glob("*.parquet"))]
    wanted = {name: column.type for name, column in KEPT.items()}
    assert all({f.name: f.type for f in kept_fields(t.schema)} == wanted for t in tables)
    rows = [row for table in tables for row in table.to_pylist()]
    found = {row["caption"]: {name: row[name] for name in KEPT} for row in rows}
    values = pa.table(KEPT).to_pylist()
    assert found == {f"number {n}": values[n] for n in range(4)}


@pytest.mark.parametrize("folder", ["fetched", "train"])
def test_members_have_them_and_a_text_that_is_not_there_is_empty(dataset, folder):
    found = {}
    for path in (dataset / folder).glob("*.tar"):
        with tarfile.open(path) as tar:
            for name in [name for name in tar.getnames() if name.endswith(".json")]:
                member = json.load(tar.extractfile(name))
                found[member["caption"]] = member
    assert len(found) == 4
    assert [found[f"number {n}"]["uid"] for n in range(4)] == ["a", "b", "", "d"]
    assert [found[f"number {n}"]["similarity"] for n in range(4)] == [0.25, None, 0.75, 1.0]
    assert found["number 3"]["tags"] == ["y", "z"]
    assert "kept" not in found["number 3"]


def test_catalogues_are_told_of_them(dataset):
    metadata = json.loads((dataset / "croissant.json").read_text())
    fields = {field["name"]: field for field in metadata["recordSet"][0]["field"]}
    assert fields["similarity"]["dataType"] == "sc:Float"
    assert fields["tags"]["repeated"] and fields["tags"]["dataType"] == "sc:Text"


def test_a_selection_asks_about_them_and_takes_them_along(dataset, tmp_path):
    out = tmp_path / "selected"
    words = ["select", str(dataset), "--out", str(out), "--where"]
    assert run([*words, "similarity > 0.5 and list_contains(tags, 'y')"]) == 0
    table = pq.read_table(out / "train" / "000000.parquet")
    assert {f.name: f.type for f in kept_fields(table.schema)} == {
        name: column.type for name, column in KEPT.items()
    }
    [row] = table.to_pylist()
    assert (row["uid"], row["similarity"], row["told_width"]) == ("d", 1.0, None)
    assert str(verify_dataset(str(out))) and str(verify_dataset(str(dataset)))
