from pipeline.dataset.commits import (
    deciding_settings,
    is_committed,
    on_accelerator,
    stage_fingerprint,
)
from schemas.columns import table_from_records, write_table
from schemas.records import LEVELLED_SCHEMA
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.storage import commit_file
from scoring.config import DeduplicateConfig, ScoreConfig


def test_a_fingerprint_changes_with_the_stage_its_settings_and_what_it_reads():
    prints = [
        stage_fingerprint(Stage.SCORE, {"a": 1}, ["x", "y"]),
        stage_fingerprint(Stage.LEVEL, {"a": 1}, ["x", "y"]),
        stage_fingerprint(Stage.SCORE, {"a": 2}, ["x", "y"]),
        stage_fingerprint(Stage.SCORE, {"a": 1}, ["y", "x"]),
        stage_fingerprint(Stage.SCORE, {"a": 1}, ["xy"]),
    ]
    assert len(set(prints)) == len(prints)
    assert {len(digits) for digits in prints} == {32}
    other_order = stage_fingerprint(Stage.SCORE, {"b": 1, "a": 2}, [])
    assert other_order == stage_fingerprint(Stage.SCORE, {"a": 2, "b": 1}, [])


def test_settings_that_decide_nothing_are_left_out():
    slow, fast = ScoreConfig(threads=1), ScoreConfig(threads=8)
    assert deciding_settings(slow) != deciding_settings(fast)
    assert deciding_settings(slow, ["threads"]) == deciding_settings(fast, ["threads"])
    assert "model" in deciding_settings(slow, ["threads"])


def test_a_shard_is_committed_under_its_own_fingerprint_alone(tmp_path):
    layout = DatasetLayout(str(tmp_path))
    with commit_file(layout.levelled(0)) as file:
        write_table(table_from_records([], LEVELLED_SCHEMA), file, {"fingerprint": "f"})
    assert is_committed(layout.levelled(0), "f")
    assert not is_committed(layout.levelled(0), "g")
    assert not is_committed(layout.levelled(1), "f")


class Step:
    hints = None

    def with_resource_hints(self, **hints):
        self.hints = hints
        return self


def test_only_work_that_must_have_a_gpu_asks_for_a_worker_with_one():
    asked = on_accelerator(Step(), ScoreConfig(device="cuda", accelerator="type:a;count:1"))
    assert asked.hints == {"accelerator": "type:a;count:1"}
    assert on_accelerator(Step(), DeduplicateConfig(device="cpu")).hints is None
