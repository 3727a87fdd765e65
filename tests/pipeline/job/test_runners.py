import pytest

from pipeline.job.runners import PASSED_ON, REFUSED, choose_runner, runner_name
from schemas.errors import ConfigError
from schemas.shards import DatasetLayout

LAYOUT = DatasetLayout("data")


@pytest.mark.parametrize("name", ["DaskRunner", "RayRunner", "PySparkRunner", "DirectRunner"])
def test_a_runner_known_to_fail_is_refused_with_its_reason(name):
    with pytest.raises(ConfigError, match=f"runner {name} is refused: ") as refused:
        choose_runner(name, 1, (), LAYOUT)
    assert REFUSED[name.lower()] in str(refused.value)
    assert "--runner local" in str(refused.value)


def test_an_unknown_runner_is_refused_with_those_that_are_known():
    with pytest.raises(ConfigError, match="runner 'Sparky' is unknown: use local, ray, or one of"):
        runner_name("Sparky")


@pytest.mark.parametrize(
    ("given", "exact"),
    [
        ("local", "local"),
        ("FnApiRunner", "local"),
        ("portable", "PortableRunner"),
        ("flink", "FlinkRunner"),
        ("dataflowrunner", "DataflowRunner"),
    ],
)
def test_a_runner_is_found_whatever_its_case_and_ending(given, exact):
    assert runner_name(given) == exact
    assert exact == "local" or exact in PASSED_ON


def test_workers_are_processes_of_the_local_runner_only():
    with pytest.raises(ConfigError, match="--workers 3 is for --runner local"):
        choose_runner("portable", 3, (), LAYOUT)
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        choose_runner("local", 0, (), LAYOUT)


def test_beam_flags_reach_the_options():
    chosen = choose_runner("local", 1, ("--job_name=stamps",), LAYOUT)
    assert chosen.options.get_all_options()["job_name"] == "stamps"


@pytest.mark.parametrize("runner", ["local", "DataflowRunner"])
def test_a_misspelt_beam_flag_is_refused_with_what_was_meant(runner):
    flags = ("--project", "p", "--regoin", "europe-west1")
    with pytest.raises(ConfigError, match="--regoin, which stands after --: did you mean --region"):
        choose_runner(runner, 1, flags, LAYOUT)


def test_a_job_server_may_know_flags_that_beam_does_not():
    chosen = choose_runner("FlinkRunner", 1, ("--own_flag", "1"), LAYOUT)
    assert chosen.options.get_all_options(retain_unknown_options=True)["own_flag"] == "1"


def test_a_runner_among_the_beam_flags_is_refused():
    with pytest.raises(ConfigError, match="name the runner before it"):
        choose_runner("local", 1, ("--runner=DaskRunner",), LAYOUT)
