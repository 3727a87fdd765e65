"""How a step's input is cut into parts for workers that take them from a queue."""

import itertools
from types import SimpleNamespace

import apache_beam as beam
import pytest
from apache_beam.coders.coders import FastPrimitivesCoder
from apache_beam.pipeline import transform_annotations
from apache_beam.runners.portability.fn_api_runner.execution import ListBuffer
from hypothesis import given
from hypothesis import strategies as st

from pipeline.dataset.commits import AT_ONCE
from pipeline.job.bundles import (
    PIECES_PER_WORKER,
    at_once_of,
    has_come_to_work,
    part_sizes,
    parts_of,
)
from pipeline.job.watch import Worker

CODER = FastPrimitivesCoder()


def buffer_of(count: int) -> ListBuffer:
    """Returns a step's input as it comes from one worker: one piece of bytes."""
    buffer = ListBuffer(CODER.get_impl())
    if count:
        buffer.append(b"".join(map(CODER.encode, range(count))))
    return buffer


def elements(part: dict[str, list[bytes]]) -> list[int]:
    impl, found = CODER.get_impl(), []
    for data in part["in"]:
        buffer = ListBuffer(impl)
        buffer.append(data)
        found += [CODER.decode(one) for (one,) in buffer.partition(10_000) if one]
    return found


@given(st.integers(0, 5000), st.integers(1, 64))
def test_parts_get_smaller_and_are_all_of_the_input(pieces, workers):
    sizes = list(part_sizes(pieces, workers))
    assert sum(sizes) == pieces
    assert sizes == sorted(sizes, reverse=True)
    if workers > 1 and pieces >= workers:
        assert sizes[-workers:] == [1] * workers


def test_parts_are_not_smaller_than_what_a_worker_takes_at_once():
    assert list(part_sizes(10, 2, at_once=4)) == [4, 3, 2, 1]
    sizes = list(part_sizes(200, 8, at_once=4))
    assert sum(sizes) == 200
    left = [200 - sum(sizes[:number]) for number in range(len(sizes))]
    assert all(size >= 4 for size, rest in zip(sizes, left, strict=True) if rest >= 4 * 8)


def test_a_step_of_the_graph_tells_how_many_elements_it_takes_at_once():
    pipeline = beam.Pipeline()
    numbers = pipeline | beam.Create([1])
    with transform_annotations(**{AT_ONCE: "4"}):
        _ = numbers | "Several" >> beam.Map(str)
    _ = numbers | "One" >> beam.Map(str)
    told = {
        transform.unique_name: at_once_of(SimpleNamespace(transforms=[transform]))
        for transform in pipeline.to_runner_api().components.transforms.values()
    }
    assert (told["Several"], told["One"]) == (4, 1)


@pytest.mark.parametrize(("count", "workers"), [(0, 4), (1, 4), (7, 4), (1000, 4), (1000, 1)])
def test_every_element_is_in_one_part(count, workers):
    parts = list(parts_of({"in": buffer_of(count)}, workers))
    assert sorted(itertools.chain(*map(elements, parts))) == list(range(count))
    assert all(elements(part) for part in parts) or (count == 0 and len(parts) == 1)
    if count == 1000 and workers > 1:
        assert len(elements(parts[-1])) <= -(-count // (workers * PIECES_PER_WORKER))
        assert len(elements(parts[0])) < count / workers


class Gone:
    """A process that has ended."""

    pid = 0

    def poll(self) -> int:
        return 1

    def kill(self) -> None:
        """Does nothing."""

    def wait(self, timeout: float | None = None) -> int:
        return 1


class Quiet:
    """A line on which nothing was ever heard."""

    def has_joined(self) -> bool:
        return False

    def has_work(self) -> bool:
        return False

    def give_up(self) -> None:
        """Does nothing."""


def test_nobody_waits_for_a_worker_that_ended_before_it_came():
    with pytest.raises(RuntimeError, match="the worker is gone"):
        has_come_to_work(Worker(Gone(), Quiet()))
