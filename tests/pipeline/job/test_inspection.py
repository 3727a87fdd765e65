import inspect
from collections.abc import Callable
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.coders import VarIntCoder
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions
from apache_beam.transforms import core, userstate
from apache_beam.transforms.timeutil import TimeDomain

from pipeline.job.inspection import remember_inspections


class Steps(beam.DoFn):
    def process(self, element, other, window=beam.DoFn.WindowParam, *more, named=1):
        yield element

    def start_bundle(self):
        pass

    def finish_bundle(self, bundle=3, last=beam.DoFn.TimestampParam):
        pass

    def setup(self=4, other=5):
        pass

    def anything(*arguments, **named):
        pass

    def alone(self, /, key, *, named):
        pass

    @classmethod
    def of_the_class(cls, first, second=2):
        pass

    @staticmethod
    def of_nobody(first, second=2):
        pass


CALLABLES: dict[str, Any] = {
    name: getattr(Steps(), name)
    for name in dir(Steps)
    if not name.startswith("__") and inspect.isroutine(getattr(Steps(), name))
} | {
    "combine": beam.combiners.ToListCombineFn().add_input,
    "map": beam.Map(lambda pair, other=1: pair).fn.process,
    "function": lambda first, second=2: first,
    "builtin": str.upper,
    "class": Steps,
}


COUNT = userstate.ReadModifyWriteStateSpec("count", VarIntCoder())
END = userstate.TimerSpec("end", TimeDomain.WATERMARK)
THE_COUNT, THE_END = beam.DoFn.StateParam(COUNT), beam.DoFn.TimerParam(END)
MORE = beam.DoFn.StateParam(userstate.BagStateSpec("more", VarIntCoder()))


class Counting(beam.DoFn):
    def process(self, pair, count=THE_COUNT, end=THE_END):
        yield pair

    @userstate.on_timer(END)
    def at_the_end(self):
        pass


class CountingOn(Counting):
    def finish_bundle(self, more=MORE):
        pass


class Twice(beam.DoFn):
    def process(self, pair, one=THE_COUNT, other=THE_COUNT):
        yield pair


@pytest.fixture(autouse=True)
def remembering() -> None:
    remember_inspections()


@pytest.mark.parametrize("function", CALLABLES.values(), ids=CALLABLES)
def test_arguments_are_those_that_beam_reads(function: Callable[..., Any]) -> None:
    expected = core.get_function_args_defaults.forgetful(function)  # type: ignore[attr-defined]
    for _ in range(2):
        names, values = core.get_function_args_defaults(function)
        assert (list(names), list(values)) == (list(expected[0]), list(expected[1]))
        names.append("changed by whoever asked")


def holding(name: str, method: Callable[..., Any]) -> beam.DoFn:
    """Returns a step of a class that others are of too, with a method that is its own."""
    step = Counting()
    setattr(step, name, method)
    return step


STEPS: tuple[Callable[[], beam.DoFn], ...] = (
    Steps,
    Counting,
    CountingOn,
    lambda: holding("own", CountingOn().finish_bundle),
    lambda: holding("process", lambda pair: [pair]),
    Counting,
    lambda: beam.Map(lambda pair: pair).fn,
    lambda: beam.Map(str.upper).fn,
)


def test_state_and_timers_are_those_that_beam_reads() -> None:
    sizes = []
    for make in STEPS * 2:
        state, timers = found = userstate.get_dofn_specs(make())
        assert found == userstate.get_dofn_specs.forgetful(make())
        sizes.append((len(state), len(timers)))
        state.add("changed by whoever asked")
        timers.clear()
    assert sizes == [(0, 0), (1, 1), (2, 1), (2, 1), (0, 0), (1, 1), (0, 0), (0, 0)] * 2


def test_a_step_that_asks_twice_for_one_state_is_refused_each_time() -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="duplicate process method parameters"):
            userstate.get_dofn_specs(Twice())


def test_what_is_set_in_one_view_of_the_options_is_seen_in_all() -> None:
    options = PipelineOptions(["--direct_num_workers", "3"])
    direct = options.view_as(StandardOptions).view_as(DirectOptions)
    assert direct.direct_num_workers == 3
    options.view_as(DirectOptions).direct_num_workers = 5
    assert direct.direct_num_workers == 5
    assert options.get_all_options()["direct_num_workers"] == 5


def test_other_options_have_views_of_their_own() -> None:
    one, two = PipelineOptions(["--streaming"]), PipelineOptions([])
    assert one.view_as(StandardOptions).streaming
    assert not two.view_as(StandardOptions).streaming
