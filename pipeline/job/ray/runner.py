"""Beam's portable runner with its workers on a Ray cluster.

The graph, the shuffle and the bookkeeping stay in this process, as Beam's runner does them; what
runs in workers is asked for over Beam's own protocol, from a pool that starts each as a Ray actor.
Steps with a hint for an accelerator get workers with a GPU, all others workers without.
"""

import uuid
from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.portability.common_urns import resource_hints
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.runners.portability.fn_api_runner.worker_handlers import (
    ExternalWorkerHandler,
    WorkerHandler,
)
from apache_beam.transforms.environments import (
    Environment,
    ExternalEnvironment,
    python_sdk_capabilities,
)

from pipeline.job.bundles import has_come_to_work, queued_bundles
from pipeline.job.local_workers import ControlLine
from pipeline.job.ray.cluster import (
    Places,
    WorkerNeeds,
    driver_address,
    find_places,
    living_nodes,
    shortage,
)
from pipeline.job.ray.pool import GPUS, RayProcess, RayWorkerPool
from pipeline.job.ray.worker import Prepare
from pipeline.job.watch import Worker, WorkerWatch
from schemas.errors import ConfigError

URN = "aligngpt:environment:ray_worker:v1"

TOKEN, DRIVER = "token", "driver"
"""Parameters of an environment: which job it belongs to, and the address of this process."""

_CREWS: WeakValueDictionary[str, "_Crew"] = WeakValueDictionary()
"""Pool and watch of a job; Beam hands on nothing but bytes."""


class _Crew:
    """The pool that a job's workers come from, and who looks after them."""

    def __init__(self, pool: RayWorkerPool, watch: WorkerWatch) -> None:
        self.pool, self.watch = pool, watch


class RayWorker(Worker):
    """A worker on a cluster, for the watchdog."""

    @property
    def host(self) -> str:
        """The name of the machine that it lives on; "" before it has come to life."""
        found = self._ray_process.whereabouts
        return "" if found is None else found.host

    @property
    def _ray_process(self) -> RayProcess:
        assert isinstance(self.process, RayProcess)
        return self.process

    def ending(self) -> str:
        """Returns how it ended, for people."""
        return self._ray_process.ending()

    def lost_its_machine(self) -> bool:
        """Returns whether its node is gone too."""
        return self._ray_process.node_is_lost()

    def refusal(self) -> ConfigError | None:
        """Returns why it could not begin, if that is for people to mend."""
        error = self._ray_process.error
        return error if isinstance(error, ConfigError) else None

    def output(self, logs: Any) -> str:
        """Returns where to find what it printed."""
        return f"Ray's logs on {self.host or 'its node'} (/tmp/ray/session_latest/logs)"


@Environment.register_urn(URN, beam_runner_api_pb2.ExternalPayload)
class RayEnvironment(ExternalEnvironment):
    """Workers that are asked for from a job's own pool."""

    def to_runner_api_parameter(self, context: Any) -> tuple[str, Any]:
        """Returns the environment's kind and what its workers are asked for by."""
        return URN, super().to_runner_api_parameter(context)[1]

    @staticmethod
    def from_runner_api_parameter(
        payload: Any, capabilities: Any, artifacts: Any, hints: Any, context: Any
    ) -> "RayEnvironment":
        """Returns the environment that was written as bytes."""
        return RayEnvironment(
            payload.endpoint.url, payload.params or None, capabilities, artifacts, hints
        )


@WorkerHandler.register_environment(URN, beam_runner_api_pb2.ExternalPayload)
class RayWorkerHandler(ExternalWorkerHandler):
    """The runner's side of one worker on the cluster."""

    def __init__(self, payload: Any, state: Any, provision_info: Any, grpc_server: Any) -> None:
        self._host, self._crew = str(payload.params[DRIVER]), _CREWS[payload.params[TOKEN]]
        self.worker: RayWorker | None = None
        super().__init__(payload, state, provision_info, grpc_server)

    def host_from_worker(self) -> str:
        """Returns the address of this process on the cluster's network."""
        return self._host

    def start_worker(self) -> None:
        """Asks the pool for the worker; it comes to work in its own time.

        Beam's runner wants the same number of each kind. Beyond those that there is room for,
        nobody is asked for: such a handler is passed over.
        """
        has_gpu = bool(self._external_payload.params.get(GPUS))
        if not self._crew.pool.has_room(has_gpu):
            return
        super().start_worker()
        process = self._crew.pool.processes[self.worker_id]
        self.worker = RayWorker(process, ControlLine(self.control_conn))
        self._crew.watch.add(self.worker)

    def is_there(self) -> bool:
        """Returns whether there is a worker: beyond those that have room nobody was asked for."""
        return self.worker is not None

    def has_come(self) -> bool:
        """Returns whether the worker has come to work.

        Raises:
            RuntimeError: if it was ended, so that it never will.
        """
        assert self.worker is not None
        return has_come_to_work(self.worker)

    def close(self) -> None:
        """Tells the worker to end; one that is gone or has not come could not hear it."""
        if self.worker is None:
            return
        alive = self.worker.process.poll() is None
        self.worker.was_told_to_end = True
        if alive and self.worker.line.has_joined() and not self.worker.was_ended:
            super().close()
        self.worker.process.kill()

    def stop_worker(self) -> None:
        """Leaves it to `close`, which ends the process."""


class RayRunner(FnApiRunner):
    """Runs a pipeline on a cluster that this process is connected to."""

    def __init__(
        self,
        workers: int,
        gpu_workers: int | None,
        needs: WorkerNeeds,
        watch: WorkerWatch,
        say: Callable[[str], None],
        prepare: Prepare | None = None,
    ) -> None:
        """Takes how many workers are wanted, and what each does before it begins.

        Args:
            gpu_workers: for the steps that must have a GPU; None for as many as there are GPUs.
            say: tells a person where the cluster has room for fewer.
            prepare: called in each worker; has to be picklable, and to hold no secret.
        """
        self._workers, self._gpu_workers, self._needs = workers, gpu_workers, needs
        self._watch, self._say, self._prepare = watch, say, prepare
        super().__init__(
            default_environment=RayEnvironment("", capabilities=python_sdk_capabilities())
        )

    def run_via_runner_api(self, pipeline_proto: Any, options: Any) -> Any:
        """Returns the result of a pipeline, once it is done; then the workers are ended.

        Raises:
            ConfigError: if the cluster has no room for a worker of a kind that is needed.
        """
        environments = pipeline_proto.components.environments
        places = self._places(needs_gpu=any(map(_asks_for_gpu, environments.values())))
        crew = _Crew(RayWorkerPool(places, self._needs, self._prepare, self._say), self._watch)
        token = uuid.uuid4().hex
        _CREWS[token] = crew
        for environment in environments.values():
            payload = beam_runner_api_pb2.ExternalPayload.FromString(environment.payload)
            payload.endpoint.url = crew.pool.address
            payload.params.update({TOKEN: token, DRIVER: driver_address()})
            if _asks_for_gpu(environment):
                payload.params[GPUS] = "1"
            environment.payload = payload.SerializeToString()
        self._num_workers = max(len(places.without_gpu), len(places.with_gpu))
        try:
            return super().run_via_runner_api(pipeline_proto, options)
        finally:
            crew.pool.close()

    def _places(self, *, needs_gpu: bool) -> Places:
        nodes = living_nodes()
        if self._gpu_workers and not needs_gpu:
            raise ConfigError(
                f"--gpu-workers {self._gpu_workers}: no step asks for a GPU. Those that score and "
                "search do with --score.device cuda and --deduplicate.device cuda"
            )
        all_gpus = int(sum(node.gpus for node in nodes))
        wanted = (all_gpus if self._gpu_workers is None else self._gpu_workers) if needs_gpu else 0
        places = find_places(nodes, self._workers, wanted, self._needs)
        if not places.without_gpu or (needs_gpu and not places.with_gpu):
            kind = "with a GPU" if places.without_gpu else "without a GPU"
            raise ConfigError(
                f"the Ray cluster ({len(nodes)} nodes) has no room for a worker {kind} of "
                f"{self._needs.cpus:g} CPUs: start more nodes, or ask for less by --worker-cpus, "
                "--worker-memory-bytes or --gpu-workers"
            )
        short = shortage(places, self._workers, wanted, self._needs, len(nodes))
        if short is not None:
            self._say(short)
        return places

    def _get_bundle_manager(self, manager: Any) -> Any:
        """Returns what divides a step's input among the workers that there are."""
        return queued_bundles(manager, self._progress_frequency)


def _asks_for_gpu(environment: Any) -> bool:
    return bool(environment.resource_hints.get(resource_hints.ACCELERATOR.urn))
