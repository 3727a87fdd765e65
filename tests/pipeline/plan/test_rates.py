import shutil

import pytest

from pipeline.dataset.worktimes import StepTime, read_times
from pipeline.plan.forecast import forecast
from pipeline.plan.rates import LAST_STEPS, Rates, StageRates, built_in_rates, rates_of, told_apart
from pipeline.select.run import Selection, make_selection
from schemas.errors import ConfigError, DatasetError
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from tests.curations import contents, curate, quiet_console
from tests.pipeline.plan.test_forecast import ONE


def test_a_finished_dataset_says_what_each_stage_took(curated):
    root, manifest, _ = curated
    rates = rates_of(str(root))
    assert [stage.stage for stage in rates.stages] == [*manifest.stages, "report"]
    assert rates.rows_in == manifest.rows_in
    for stage in rates.stages:
        last = [step for step in stage.steps if step.step == LAST_STEPS[stage.stage]]
        assert sum(step.rows for step in last) == stage.rows_in
        # A step within the time of others adds none: what all took at once is shared out.
        assert sum(step.seconds for step in stage.steps) > 0
        assert stage.stored_bytes > 0
    fetched = next(stage for stage in rates.stages if stage.stage == Stage.FETCH)
    tars = sum(path.stat().st_size for path in (root / "fetched").glob("*.tar"))
    assert fetched.stored_bytes > tars
    assert sum(step.bytes for step in fetched.steps) > 0
    assert Rates.from_json(rates.to_json()) == rates


@pytest.mark.slow
def test_what_a_job_took_stays_when_others_go_on_and_goes_with_its_output(
    config, pairs, curated, tmp_path
):
    layout = DatasetLayout(str(tmp_path / "data"))
    curate(config, pairs, layout.root, stages=(Stage.READ, Stage.FETCH))
    fetched = read_times(layout, Stage.FETCH)
    curate(config, pairs, layout.root)
    assert read_times(layout, Stage.FETCH) == fetched
    once = {stage.stage: stage.steps for stage in rates_of(layout.root).stages}
    assert contents(tmp_path / "data") == contents(curated[0])
    curate(config, pairs, layout.root, redo=Stage.PACK)
    again = {stage.stage: stage.steps for stage in rates_of(layout.root).stages}
    assert again[Stage.LEVEL] == once[Stage.LEVEL]
    assert again[Stage.PACK] != once[Stage.PACK]
    assert [step.rows for step in again[Stage.PACK]] == [step.rows for step in once[Stage.PACK]]


def test_a_dataset_that_does_not_say_what_it_took_is_refused_with_what_to_do(curated, tmp_path):
    shutil.copytree(curated[0], tmp_path / "old")
    for path in (tmp_path / "old" / "_run" / "times").glob("score-*.json"):
        path.unlink()
    with pytest.raises(DatasetError, match=r"how long score took.*Curate some thousand"):
        rates_of(str(tmp_path / "old"))
    shutil.rmtree(tmp_path / "old" / "_run" / "times")
    with pytest.raises(DatasetError, match=r"how long read, fetch, .*, report took"):
        rates_of(str(tmp_path / "old"))


def test_a_selection_and_a_folder_without_a_dataset_are_refused(curated, tmp_path):
    selection = Selection(command="select", parents=(str(curated[0]),), where="true")
    make_selection(selection, str(tmp_path / "chosen"), quiet_console())
    with pytest.raises(ConfigError, match="so that no stage ran there: plan from one"):
        rates_of(str(tmp_path / "chosen"))
    with pytest.raises(ConfigError, match="there is no folder"):
        rates_of(str(tmp_path / "nothing"))


def run_of(rows: int, seconds: float, pieces: int = 1) -> Rates:
    step = StepTime(step="join", pieces=pieces, rows=rows, seconds=seconds, cpu_seconds=seconds)
    step.processes, step.first_rows, step.first_seconds = 1, rows // pieces, seconds / 2
    stage = StageRates(
        stage="deduplicate", rows_in=rows, kept=rows, stored_bytes=rows, steps=(step,)
    )
    return Rates(source=f"{rows} pairs", rows_in=rows, embedding_width=0, stages=(stage,))


def test_two_runs_tell_what_is_fixed_from_what_grows():
    rates = told_apart([run_of(5000, 3.0), run_of(1000, 1.0)])
    (step,) = rates.stages[0].steps
    assert (step.rows, step.first_rows) == (5000, 0)
    assert step.first_seconds == pytest.approx(0.5)
    (again,) = forecast(rates, 5000, ONE)
    assert again.seconds == pytest.approx(3.0)
    (more,) = forecast(rates, 1_000_000, ONE)
    assert more.seconds == pytest.approx(0.5 + 500.0)


def test_where_later_pieces_tell_or_the_smaller_run_was_slower_the_runs_say_what_they_can():
    several = told_apart([run_of(1000, 1.0, 2), run_of(5000, 3.0, 10)])
    assert several.stages == run_of(5000, 3.0, 10).stages
    (step,) = told_apart([run_of(1000, 4.0), run_of(5000, 3.0)]).stages[0].steps
    assert step.first_seconds == 3.0
    (step,) = told_apart([run_of(1000, 0.1), run_of(5000, 3.0)]).stages[0].steps
    assert step.first_seconds == 0.0


def test_other_than_two_runs_of_sizes_apart_are_refused():
    with pytest.raises(ConfigError, match="as many pairs"):
        told_apart([run_of(1000, 1.0), run_of(1000, 2.0)])
    with pytest.raises(ConfigError, match="one dataset, or two of sizes apart; got 3"):
        told_apart([run_of(rows, 1.0) for rows in (1, 2, 3)])


def test_the_rates_that_come_with_the_program_say_which_run_they_are_of():
    rates = built_in_rates()
    assert "benchmarks/plan.py" in rates.source
    assert [stage.stage for stage in rates.stages] == [
        name for name in LAST_STEPS if name != Stage.RECAPTION.value
    ]
    assert all(stage.steps for stage in rates.stages)
