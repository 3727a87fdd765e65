import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config import CurationConfig, FetchConfig
from pipeline.dataset.ownership import read_record
from pipeline.job.run import (
    Job,
    check_stages,
    with_checked_inputs,
    with_shared_cores,
    with_shared_hosts,
)
from schemas.errors import ConfigError
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from scoring.config import DeduplicateConfig, LevelConfig
from tests.curated_tables import write_shards
from tests.curations import curate, write_pairs
from tests.levelled import forget_overall_edges, level, some_rows


@pytest.mark.parametrize(("workers", "share"), [(0, 0), (1, 0), (3, 2), (16, 1)])
def test_workers_on_this_machine_share_its_cores_unless_told_otherwise(monkeypatch, workers, share):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(8))
    shared = with_shared_cores(CurationConfig(), workers)
    assert (shared.fetch.decode_processes, shared.deduplicate.threads) == (share, share)
    told = CurationConfig(
        fetch=FetchConfig(decode_processes=5), deduplicate=DeduplicateConfig(threads=6)
    )
    assert with_shared_cores(told, workers) == told


@pytest.mark.parametrize(
    ("runner", "told", "workers"),
    [("local", 0, 6), ("ray", 0, 6), ("DataflowRunner", 0, 0), ("DataflowRunner", 9, 9)],
)
def test_workers_share_a_host_where_it_is_known_how_many_there_are(runner, told, workers):
    config = CurationConfig(fetch=FetchConfig(sharing_workers=told))
    assert with_shared_hosts(config, runner, 6).fetch.sharing_workers == workers


@pytest.fixture
def layout(tmp_path):
    return DatasetLayout(str(tmp_path / "data"))


@pytest.mark.slow
@pytest.mark.parametrize("stages", [(Stage.READ, Stage.LEVEL), (Stage.LEVEL,)])
def test_input_that_edges_without_overall_ones_do_not_know_stops_the_job_before_it_starts(
    layout, tmp_path, stages
):
    level(layout, write_shards(layout, [some_rows(20, source="jan.csv")]), per_source=True)
    files = tuple(str(tmp_path / name) for name in ("jan.csv", "feb.csv"))
    for file in files:
        Path(file).write_text("url,caption\nhttps://example.com/a.jpg,a\n")
    config = CurationConfig(levels=LevelConfig(per_source=True, edges_from=layout.root))
    job = Job(root=layout.root, config=config, stages=stages, has_report=False, files=files)
    job = with_checked_inputs(job)
    Path(layout.run, "read.json").write_text(json.dumps({"files": files}))
    Path(layout.pairs(0)).parent.mkdir()
    Path(layout.pairs(0)).touch()  # what the stages before have done is there
    check_stages(job, runs_here=True)
    forget_overall_edges(layout)
    with pytest.raises(ConfigError, match=r"no edges for 'feb\.csv', only for jan\.csv.*--redo"):
        check_stages(job, runs_here=True)
    Path(layout.run, "read.json").write_text(json.dumps({"files": files[:1]}))
    check_stages(with_checked_inputs(replace(job, files=files[:1])), runs_here=True)


@pytest.mark.slow
def test_a_graph_that_is_handed_over_leaves_its_folders_to_the_job_that_runs_it(tmp_path):
    """The job is begun by one process and reported by another, as with a flex template."""
    pairs = write_pairs(tmp_path / "in", [("http://a.example/x.png", "a picture")])
    root, stages = tmp_path / "out", (Stage.READ,)
    job = ("--template_location=gs://bucket/staging/x",)
    manifest, said = curate(CurationConfig(), pairs, root, stages, beam_flags=job)
    assert manifest is None
    assert f"`aligngpt-curate report --out {root}` writes manifest and report" in said
    assert "Done" not in said
    layout = DatasetLayout(str(root))
    assert read_record(layout).open >= {"pairs", "rejected/read"}
    curate(CurationConfig(), pairs, root, stages)
    assert read_record(layout).open == set()
    assert read_record(layout).files["pairs"] == {"00000.parquet"}
