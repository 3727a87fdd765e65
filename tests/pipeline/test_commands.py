"""What commands say of options that make no sense, and which stages they run."""

import pytest

from pipeline.commands import COMMANDS, Browse, Fetch, Merge, Plan, Publish, RunOptions, Select
from schemas.errors import ConfigError
from schemas.stages import Stage


def test_a_merger_takes_two_datasets_or_more():
    Merge(datasets=("a", "b"), out="c")
    with pytest.raises(ConfigError, match="merge takes two datasets or more"):
        Merge(datasets=("a",), out="c")


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (Publish, {"dataset": "a"}),
        (Select, {"dataset": "a", "where": "true"}),
        (Merge, {"datasets": ("a", "b")}),
    ],
)
def test_what_is_written_anew_has_samples_in_its_shards(command, options):
    command(**options, out="c", samples_per_shard=1)
    with pytest.raises(ConfigError, match="--samples-per-shard must be at least 1, got 0"):
        command(**options, out="c", samples_per_shard=0)


@pytest.mark.parametrize("port", [-1, 65_536])
def test_a_page_needs_a_port_that_there_is(port):
    Browse(dataset="a", port=65_535)
    with pytest.raises(ConfigError, match=rf"--port must be in 0\.\.65535, got {port}"):
        Browse(dataset="a", port=port)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairs": 0}, "--pairs must be a whole number from 1 on"),
        ({"pairs": 1.5}, "--pairs must be a whole number from 1 on"),
        ({"pairs": float("nan")}, "--pairs must be a whole number from 1 on"),
        ({"workers": 0}, "at least one worker is needed"),
        ({"gpus": -1}, "GPUs from 0 on"),
        ({"price_worker_hour": -0.1}, "--price-worker-hour must be dollars from 0 on"),
        ({"price_terabyte_month": float("inf")}, "--price-terabyte-month must be dollars"),
        ({"gpu_pairs_per_second": 0.0}, "--gpu-pairs-per-second must be positive"),
    ],
)
def test_a_plan_of_what_cannot_be_is_refused_by_its_flag(options, message):
    Plan(pairs=1e9, price_gpu_hour=0.0)
    with pytest.raises(ConfigError, match=message):
        Plan(**{"pairs": 10.0, **options})


def test_every_stage_is_run_by_a_command_of_its_own():
    alone = {kind.stages: name for name, kind in COMMANDS.items() if issubclass(kind, RunOptions)}
    assert {(stage,) for stage in Stage} <= set(alone)
    assert alone[(Stage.FETCH,)] == "fetch"
    assert Fetch(out="x").pairs == ()


@pytest.mark.parametrize("name", COMMANDS)
def test_the_first_line_of_a_commands_help_is_a_sentence(name):
    text = (COMMANDS[name].__doc__ or "").split("\n\n")[0]
    assert text[0].isupper() and text.rstrip().endswith(".")
