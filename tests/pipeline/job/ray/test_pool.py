"""What the pool answers to requests for workers, as far as no cluster is asked."""

import queue
from typing import Any, cast

import pytest

pytest.importorskip("ray", reason="needs Ray: pip install 'aligngpt[ray]'")

import grpc
from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc

from pipeline.job.ray.cluster import Places, WorkerNeeds
from pipeline.job.ray.pool import GPUS, RayWorkerPool


@pytest.fixture
def pool():
    pool = RayWorkerPool(Places(without_gpu=(), with_gpu=("a",)), WorkerNeeds())
    yield pool
    pool.close()


@pytest.fixture
def asked(pool):
    """Returns the pool as a runner sees it, over the network."""
    with grpc.insecure_channel(pool.address) as channel:
        yield beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolStub(channel)


def test_a_place_is_for_one_worker_of_its_kind(pool):
    assert pool.has_room(True)
    assert not pool.has_room(False)


@pytest.mark.parametrize(("gpus", "kind"), [({}, "worker "), ({GPUS: "0"}, "worker ")])
def test_a_full_cluster_is_an_answer_in_words(asked, pool, gpus, kind):
    request = beam_fn_api_pb2.StartWorkerRequest(worker_id="w", params=gpus)
    answer = asked.StartWorker(request, timeout=60)
    assert answer.error == f"the cluster has no room for another {kind}".rstrip() + " "
    assert pool.processes == {}


def test_a_worker_that_there_is_not_is_stopped_already(asked):
    request = beam_fn_api_pb2.StopWorkerRequest(worker_id="nobody")
    assert asked.StopWorker(request, timeout=60).error == ""


class Waiting:
    """A worker that Ray has no room for."""

    def is_placed(self) -> bool:
        return False

    def kill(self) -> None:
        """Does nothing."""


def test_workers_that_wait_for_room_are_told_of(monkeypatch):
    monkeypatch.setattr("pipeline.job.ray.pool.TELL_SECONDS", 0.01)
    said: queue.SimpleQueue[str] = queue.SimpleQueue()
    pool = RayWorkerPool(Places(without_gpu=(), with_gpu=()), WorkerNeeds(), say=said.put)
    pool.processes["w"] = cast(Any, Waiting())
    try:
        assert said.get(timeout=60).startswith("Ray has started 0 of 1 workers so far")
    finally:
        pool.close()
