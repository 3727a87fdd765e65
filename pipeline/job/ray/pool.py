"""The pool that Beam asks for workers, which are actors on a Ray cluster.

Beam's own protocol for workers that it does not start (`BeamFnExternalWorkerPool`) is all there is
between the two: any runner that knows the environment EXTERNAL can ask.
"""

import subprocess
import threading
from collections import deque
from collections.abc import Callable
from concurrent import futures
from contextlib import suppress
from typing import Any

import grpc
import ray
from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc, endpoints_pb2
from google.protobuf import text_format
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.job.ray.cluster import Places, WorkerNeeds, living_nodes
from pipeline.job.ray.worker import BeamWorker, Prepare, Whereabouts
from schemas.memory import AT_START

GPUS = "gpus"
"""Parameter of a request that says how many GPUs the worker must have."""

TELL_SECONDS = 30.0
"""Between two looks at whether workers wait for room on the cluster."""


class RayProcess:
    """The process of an actor, looked at as if it were a child of this one."""

    def __init__(self, actor: Any, has_gpu: bool, prepare: Prepare | None, words: dict[str, str]):
        self._actor = actor
        self._placed = actor.is_placed.remote()
        self._begun = actor.begin.remote(has_gpu, prepare)
        # What it could not begin for is what it is ended by.
        self._served = actor.serve.remote(words, self._begun)
        self._whereabouts: Whereabouts | None = None
        self.error: BaseException | None = None
        """What the worker was ended by, once it is."""

    @property
    def whereabouts(self) -> Whereabouts | None:
        """Where it lives; None before it has come to life."""
        if self._whereabouts is None and _is_ready(self._begun):
            with suppress(RayError):
                self._whereabouts = ray.get(self._begun)
        return self._whereabouts

    def is_placed(self) -> bool:
        """Returns whether Ray has found room for it, or has given it up."""
        return _is_ready(self._placed)

    @property
    def pid(self) -> int:
        """The process id on its own host; 0 before it has come to life."""
        found = self.whereabouts
        return 0 if found is None else found.process

    def poll(self) -> int | None:
        """Returns None while it lives, 0 once it is done in order, 1 if it ended otherwise."""
        if self.error is not None:
            return 1
        if not _is_ready(self._served):
            return None
        try:
            ray.get(self._served)
        except RayTaskError as error:
            self.error = error.cause
        except RayError as error:
            self.error = error
        return 0 if self.error is None else 1

    def kill(self) -> None:
        """Ends it at once."""
        ray.kill(self._actor, no_restart=True)

    def wait(self, timeout: float | None = None) -> int:
        """Returns the status once it has ended.

        Raises:
            subprocess.TimeoutExpired: if it lives on.
        """
        ray.wait([self._served], timeout=timeout, fetch_local=False)
        status = self.poll()
        if status is None:
            raise subprocess.TimeoutExpired("a worker on Ray", timeout or 0)
        return status

    def node_is_lost(self) -> bool:
        """Returns whether the machine that it lived on is gone too."""
        found = self.whereabouts
        return found is not None and all(node.id != found.node for node in living_nodes())

    def ending(self) -> str:
        """Returns how it ended, for people."""
        if isinstance(self.error, RayActorError):
            return " ".join(str(self.error).split())
        return "in order" if self.error is None else f"{type(self.error).__name__}: {self.error}"


def _is_ready(reference: Any) -> bool:
    ready, _ = ray.wait([reference], timeout=0, fetch_local=False)
    return bool(ready)


class RayWorkerPool(beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolServicer):
    """Starts a worker at one of the cluster's places for each request."""

    def __init__(
        self,
        places: Places,
        needs: WorkerNeeds,
        prepare: Prepare | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Begins to take requests.

        Args:
            prepare: called in each worker before it begins.
            say: tells a person which workers Ray has no room for yet.
        """
        self._free = {False: deque(places.without_gpu), True: deque(places.with_gpu)}
        self._needs, self._prepare = needs, prepare
        self._lock = threading.Lock()
        self.processes: dict[str, RayProcess] = {}
        """Name of the worker to its process."""
        self._server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
        beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        """Where requests are taken."""
        self._server.start()
        self._say, self._is_closed = say, threading.Event()
        threading.Thread(target=self._tell_who_waits, daemon=True).start()

    def has_room(self, has_gpu: bool) -> bool:
        """Returns whether there is a place for another worker of a kind."""
        return bool(self._free[has_gpu])

    def StartWorker(self, request: Any, context: Any) -> Any:  # noqa: N802 - Beam's name
        """Answers with an error in words, or with none once Ray is asked for the worker."""
        has_gpu = bool(float(request.params.get(GPUS) or 0))
        with self._lock:
            if not self._free[has_gpu]:
                kind = "with a GPU " if has_gpu else ""
                return beam_fn_api_pb2.StartWorkerResponse(
                    error=f"the cluster has no room for another worker {kind}"
                )
            node = self._free[has_gpu].popleft()
        actor = (
            ray.remote(BeamWorker)
            .options(
                num_cpus=self._needs.cpus,
                memory=self._needs.memory_bytes or None,
                num_gpus=1 if has_gpu else 0,
                max_restarts=0,
                # Ray's own worker imports Arrow and gRPC: after that it is too late to tell.
                runtime_env={"env_vars": dict(AT_START)},
                # Soft: Ray places it elsewhere if the node is full or gone by now.
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=True),
            )
            .remote()
        )
        words = {
            "WORKER_ID": request.worker_id,
            "CONTROL_API_SERVICE_DESCRIPTOR": _as_text(request.control_endpoint),
            "LOGGING_API_SERVICE_DESCRIPTOR": _as_text(request.logging_endpoint),
        }
        process = RayProcess(actor, has_gpu, self._prepare, words)
        self.processes[request.worker_id] = process
        return beam_fn_api_pb2.StartWorkerResponse()

    def StopWorker(self, request: Any, context: Any) -> Any:  # noqa: N802 - Beam's name
        """Ends a worker at once."""
        process = self.processes.get(request.worker_id)
        if process is not None:
            process.kill()
        return beam_fn_api_pb2.StopWorkerResponse()

    def _tell_who_waits(self) -> None:
        """Says so whenever workers are left that Ray has not started, so that nobody wonders."""
        told = None
        while not self._is_closed.wait(TELL_SECONDS):
            processes = list(self.processes.values())
            placed = sum(process.is_placed() for process in processes)
            if placed < len(processes) and placed != told:
                self._say(
                    f"Ray has started {placed} of {len(processes)} workers so far: the others join "
                    "when there is room for them on the cluster and their processes have come up."
                )
                told = placed

    def close(self) -> None:
        """Ends all workers, and takes no more requests."""
        self._is_closed.set()
        self._server.stop(None)
        for process in self.processes.values():
            process.kill()


def _as_text(address: endpoints_pb2.ApiServiceDescriptor) -> str:
    return str(text_format.MessageToString(address))
