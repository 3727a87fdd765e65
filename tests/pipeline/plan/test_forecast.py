from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.dataset.worktimes import StepTime
from pipeline.plan.forecast import (
    ASSUMED_GPU_PAIRS_PER_SECOND,
    SEARCH_SECONDS,
    Resources,
    StageForecast,
    forecast,
)
from pipeline.plan.rates import Rates, StageRates
from schemas.errors import ConfigError

ONE = Resources(
    workers=1,
    gpus=0,
    gpu_pairs_per_second=None,
    price_worker_hour=0.36,
    price_gpu_hour=3.6,
)


def step(name: str, seconds: float, rows: int = 1000, **values: object) -> StepTime:
    settings = {"pieces": 10, "cpu_seconds": 2 * seconds} | values
    return StepTime(step=name, seconds=seconds, rows=rows, **settings)


def stage(name: str, *steps: StepTime, rows: int = 1000, kept: int = 500) -> StageRates:
    return StageRates(stage=name, rows_in=rows, kept=kept, stored_bytes=2000, steps=steps)


def one(found: StageRates, pairs: int, resources: Resources = ONE, width: int = 0) -> StageForecast:
    """Returns what a stage of a run of 1,000 pairs takes."""
    rates = Rates(source="a run", rows_in=1000, embedding_width=width, stages=(found,))
    return forecast(rates, pairs, resources)[0]


def test_a_plan_of_the_run_itself_is_what_it_took():
    found = one(stage("fetch", step("fetch", 20.0, bytes=7000)), 1000)
    assert (found.rows_in, found.kept) == (1000, 500)
    assert (found.seconds, found.worker_seconds, found.cpu_seconds) == (20.0, 20.0, 40.0)
    assert (found.stored_bytes, found.passing_bytes) == (2000, 7000)


def test_ten_times_the_pairs_on_five_workers_take_twice_as_long():
    found = one(stage("fetch", step("fetch", 20.0)), 10_000, replace(ONE, workers=5))
    assert found.seconds == pytest.approx(40.0)
    assert found.worker_seconds == pytest.approx(200.0)
    assert found.dollars == pytest.approx(40.0 * 5 * 0.36 / 3600)


def test_workers_beyond_the_pieces_do_not_help():
    found = one(stage("fetch", step("fetch", 20.0)), 1000, replace(ONE, workers=64))
    assert found.seconds == pytest.approx(2.0)


def test_a_stage_has_the_share_of_the_pairs_that_it_had():
    found = one(stage("level", step("assign", 1.0, rows=400), rows=400, kept=400), 5000)
    assert (found.rows_in, found.kept) == (2000, 2000)
    assert found.seconds == pytest.approx(5.0)


def test_what_one_worker_does_alone_is_not_divided():
    found = one(stage("pack", step("plan", 1.0), step("pack", 8.0)), 1000, replace(ONE, workers=2))
    assert found.seconds == pytest.approx(1.0 + 4.0)


def test_what_takes_the_same_for_any_number_of_pairs_does_so():
    found = one(stage("report", step("report", 1.0), step("render", 3.0)), 10_000)
    assert found.seconds == pytest.approx(10.0 + 3.0)


def test_what_looks_at_so_many_shards_at_most_ends_with_them():
    report = stage("report", step("report", 0.0), step("control", 10.0, pieces=10))
    assert one(report, 5000).seconds == pytest.approx(50.0)
    assert one(report, 1_000_000).seconds == pytest.approx(64.0)


def test_the_first_piece_of_each_process_is_no_measure_of_the_others():
    first = {"processes": 1, "first_rows": 100, "first_seconds": 6.0, "first_cpu_seconds": 3.0}
    fetch = stage("fetch", step("fetch", 15.0, cpu_seconds=12.0, **first))
    assert one(fetch, 1000).seconds == pytest.approx(15.0)
    two = one(fetch, 10_000, replace(ONE, workers=2))
    assert two.seconds == pytest.approx(5.0 + 100 / 2)
    assert two.worker_seconds == pytest.approx(2 * 5.0 + 100)
    assert two.cpu_seconds == pytest.approx(2 * 2.0 + 100)


def overlapping(rows: int) -> StepTime:
    """Returns what a worker records that fetches shards of 250 rows, several at once.

    Two decoders take 0.9 s of a core each until they are ready, at the same time; a row takes
    10 ms by the clock and 20 ms of the cores.
    """
    return StepTime(
        step="fetch",
        pieces=rows // 250,
        rows=rows,
        seconds=1.0 + 0.010 * rows,
        cpu_seconds=1.8 + 0.020 * rows,
        processes=1,
        first_seconds=1.0,
        first_cpu_seconds=1.8,
    )


@pytest.mark.parametrize("rows", [250, 500, 1000])
def test_shards_that_overlap_predict_a_larger_run_however_few_they_are(rows):
    small = stage("fetch", overlapping(rows), rows=rows)
    rates = Rates(source="a run", rows_in=rows, embedding_width=0, stages=(small,))
    (found,) = forecast(rates, 5000, ONE)
    large = overlapping(5000)
    assert found.seconds == found.worker_seconds == pytest.approx(large.seconds)
    assert found.cpu_seconds == pytest.approx(large.cpu_seconds)
    (spread,) = forecast(rates, 5000, replace(ONE, workers=4))
    assert spread.seconds == pytest.approx(1.0 + 50 / 4)
    assert spread.cpu_seconds == pytest.approx(4 * 1.8 + 100)


def test_where_a_run_told_the_pace_of_the_middle_all_beyond_it_is_fixed():
    flow = {"processes": 2, "flow_rows": 400, "flow_seconds": 4.0, "flow_cpu_seconds": 8.0}
    fetch = stage("fetch", step("fetch", 16.0, cpu_seconds=26.0, pieces=4, **flow))
    two = one(fetch, 1000, replace(ONE, workers=2))
    assert (two.worker_seconds, two.cpu_seconds) == pytest.approx((16.0, 26.0))
    more = one(fetch, 100_000, replace(ONE, workers=4))
    assert more.seconds == pytest.approx(3.0 + 1000 / 4)
    assert more.worker_seconds == pytest.approx(4 * 3.0 + 1000)
    assert more.cpu_seconds == pytest.approx(4 * 3.0 + 2000)
    faster = stage("fetch", step("fetch", 9.0, cpu_seconds=19.0, pieces=4, **flow))
    assert one(faster, 100_000).seconds == pytest.approx(1000.0)


def test_what_was_asked_again_grows_with_the_rows_and_not_beyond_its_share():
    again = step("retry", 3.0, rows=100, bytes=50, cpu_seconds=6.0)
    fetch = stage("fetch", step("fetch", 20.0, bytes=7000), again)
    found = one(fetch, 10_000)
    assert found.worker_seconds == pytest.approx(230.0)
    assert found.cpu_seconds == pytest.approx(460.0)
    assert found.passing_bytes == pytest.approx(70_500)


def test_bytes_that_are_fixed_do_not_grow():
    report = replace(stage("report", step("report", 1.0)), fixed_bytes=1500)
    assert one(report, 10_000).stored_bytes == 1500 + 5000
    assert one(report, 1000).stored_bytes == 2000


def test_work_that_a_kill_lost_the_time_of_is_reckoned_from_the_rest():
    found = one(stage("fetch", step("fetch", 16.0, rows=800, pieces=8)), 1000)
    assert found.worker_seconds == pytest.approx(20.0)


def test_the_search_grows_faster_than_its_rows():
    search = stage("deduplicate", step("near", 1.0))
    more = one(search, 1_000_000, width=512).seconds
    assert more == pytest.approx(1000 + SEARCH_SECONDS * (1e9 - 1e6 * 1000**0.5))
    assert one(search, 1000, width=512).seconds == pytest.approx(1.0)


def test_the_search_of_a_faster_machine_grows_from_what_it_took():
    fast = stage("deduplicate", step("near", 1e-6))
    assert one(fast, 1_000_000, width=512).seconds == pytest.approx(1e-6 * 1000**1.5)


def test_temporary_files_hold_a_row_more_than_once_where_there_are_several_cells():
    spill = stage("deduplicate", step("spill", 1.0, bytes=100))
    assert one(spill, 1000).passing_bytes == 100
    assert one(spill, 2000).passing_bytes == pytest.approx(200 * 4.75)


def test_gpus_score_at_the_rate_that_is_given_measured_or_assumed():
    on_cpu, on_gpu = stage("score", step("score", 50.0)), stage("score", step("score", 2.0))
    on_gpu.steps[0].device = "cuda"
    two = replace(ONE, gpus=2)
    given = replace(two, gpu_pairs_per_second=100.0)
    for found in (one(on_cpu, 1000, given), one(on_gpu, 1000, given)):
        assert (found.gpu_seconds, found.seconds, found.worker_seconds) == (10.0, 5.0, 0.0)
        assert found.dollars == pytest.approx(5.0 * 2 * 3.6 / 3600)
    assert one(on_gpu, 1000, two).gpu_seconds == pytest.approx(2.0)
    assert one(on_cpu, 1000, two).gpu_seconds == pytest.approx(1000 / ASSUMED_GPU_PAIRS_PER_SECOND)
    assert one(on_cpu, 1000).gpu_seconds == 0
    with pytest.raises(ConfigError, match=r"used GPUs for score: say how many .* by --gpus"):
        one(on_gpu, 1000)


def test_what_workers_add_to_scores_stays_with_them():
    both = stage("score", step("score", 50.0), step("signals", 4.0))
    found = one(both, 1000, replace(ONE, gpus=2, gpu_pairs_per_second=100.0))
    assert (found.gpu_seconds, found.worker_seconds, found.seconds) == (10.0, 4.0, 5.0 + 4.0)


def test_rows_of_devices_of_two_kinds_are_shared_as_they_were():
    both = stage(
        "score",
        step("score", 30.0, rows=600),
        step("score", 2.0, rows=400, device="cuda", pieces=4),
    )
    found = one(both, 10_000, replace(ONE, gpus=1))
    assert found.worker_seconds == pytest.approx(300.0)
    assert found.gpu_seconds == pytest.approx(20.0)


@given(
    pairs=st.integers(1, 10**10),
    workers=st.integers(1, 1000),
    seconds=st.floats(1e-6, 1e4),
    width=st.sampled_from([0, 384, 1024]),
)
def test_more_workers_never_take_longer_and_more_pairs_never_less(pairs, workers, seconds, width):
    first = {"processes": 1, "first_rows": 100, "first_seconds": seconds / 4}
    search = stage(
        "deduplicate", step("near", seconds), step("keep", seconds, **first), step("join", seconds)
    )
    found = one(search, pairs, replace(ONE, workers=workers), width)
    assert one(search, pairs, replace(ONE, workers=workers + 1), width).seconds > 0
    more = one(search, pairs, replace(ONE, workers=2 * workers), width)
    assert more.seconds <= found.seconds * (1 + 1e-9)
    twice = one(search, 2 * pairs, replace(ONE, workers=workers), width)
    assert twice.worker_seconds >= found.worker_seconds
