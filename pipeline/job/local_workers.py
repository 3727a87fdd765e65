"""Worker processes on this machine, as an environment of Beam's local runner.

Beam's own kind of worker process is known to nobody but the thread that waits for it, and is
waited for before the next one is told to end. Here the job knows each process and whether it was
told to end, and all of them end at the same time.
"""

import json
import os
import shlex
import subprocess
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from weakref import WeakValueDictionary

from apache_beam.portability.api import beam_fn_api_pb2, endpoints_pb2
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.runners.portability.fn_api_runner.worker_handlers import (
    ControlConnection,
    GrpcWorkerHandler,
    WorkerHandler,
)
from apache_beam.transforms.environments import Environment, python_sdk_capabilities
from google.protobuf import json_format, text_format

from pipeline.job.bundles import QueuedBundles, has_come_to_work, queued_bundles
from pipeline.job.watch import Worker, WorkerWatch
from schemas.memory import AT_START

URN = "aligngpt:environment:local_worker:v1"

_WATCHES: WeakValueDictionary[str, WorkerWatch] = WeakValueDictionary()
"""Who looks after the workers of a job; Beam hands on nothing but bytes."""


@Environment.register_urn(URN, bytes)
class LocalWorkers(Environment):
    """Workers that are processes started by one command, under the eyes of a watchdog."""

    def __init__(
        self,
        command: Sequence[str],
        watch: WorkerWatch | None = None,
        token: str = "",
        capabilities: Iterable[str] = (),
        artifacts: Iterable[Any] = (),
        resource_hints: Mapping[str, bytes] | None = None,
    ) -> None:
        super().__init__(capabilities, artifacts, resource_hints)
        self.command, self.token = tuple(command), token or uuid.uuid4().hex
        if watch is not None:
            _WATCHES[self.token] = watch

    @classmethod
    def watched(cls, command: Sequence[str], watch: WorkerWatch) -> "LocalWorkers":
        """Returns the environment of workers of this Python, with all that Beam can do here."""
        return cls(command, watch, capabilities=python_sdk_capabilities())

    def __eq__(self, other: object) -> bool:
        return super().__eq__(other) and self.token == getattr(other, "token", None)

    def __hash__(self) -> int:
        return hash((super().__hash__(), self.token))

    def __repr__(self) -> str:
        return f"LocalWorkers({shlex.join(self.command)})"

    def to_runner_api_parameter(self, context: Any) -> tuple[str, bytes]:
        """Returns the environment's kind and what its workers are made from."""
        return URN, json.dumps({"command": self.command, "token": self.token}).encode()

    @staticmethod
    def from_runner_api_parameter(
        payload: bytes,
        capabilities: Iterable[str],
        artifacts: Iterable[Any],
        resource_hints: Mapping[str, bytes],
        context: Any,
    ) -> "LocalWorkers":
        """Returns the environment that was written as bytes."""
        values = json.loads(payload)
        return LocalWorkers(
            values["command"], None, values["token"], capabilities, artifacts, resource_hints
        )


class ControlLine:
    """The instructions of Beam's runner to one worker, and the answers to them."""

    def __init__(self, connection: ControlConnection) -> None:
        self._connection = connection

    def has_joined(self) -> bool:
        """Returns whether the worker has ever come to work."""
        return self._connection._input is not None

    def has_work(self) -> bool:
        """Returns whether the worker was given something that it has not answered."""
        return bool(self._connection._futures_by_id)

    def give_up(self) -> None:
        """Answers in the worker's place that it is gone, where the runner would wait for ever."""
        waiting = self._connection._futures_by_id
        for number in list(waiting):
            answer = waiting.pop(number, None)
            if answer is not None:
                answer.set(
                    beam_fn_api_pb2.InstructionResponse(
                        instruction_id=number, error="the worker is gone"
                    )
                )


@WorkerHandler.register_environment(URN, bytes)
class LocalWorkerHandler(GrpcWorkerHandler):
    """The runner's side of one worker process."""

    def __init__(self, payload: bytes, state: Any, provision_info: Any, grpc_server: Any) -> None:
        super().__init__(state, provision_info, grpc_server)
        values = json.loads(payload)
        self._command, self._watch = values["command"], _WATCHES[values["token"]]

    def start_worker(self) -> None:
        """Starts the process; it comes to work in its own time."""
        options = self.provision_info.provision_info.pipeline_options
        process = subprocess.Popen(
            self._command,
            env={
                **os.environ,
                **AT_START,
                "CONTROL_API_SERVICE_DESCRIPTOR": _as_text(self.control_api_service_descriptor()),
                "LOGGING_API_SERVICE_DESCRIPTOR": _as_text(self.logging_api_service_descriptor()),
                "PIPELINE_OPTIONS": json_format.MessageToJson(options),
                "WORKER_ID": self.worker_id,
            },
        )
        self._worker = Worker(process, ControlLine(self.control_conn))
        self._watch.add(self._worker)

    def is_there(self) -> bool:
        """Returns whether there is a worker: each was started."""
        return True

    def has_come(self) -> bool:
        """Returns whether the worker has come to work.

        Raises:
            RuntimeError: if it was ended, so that it never will.
        """
        return has_come_to_work(self._worker)

    def close(self) -> None:
        """Tells the worker to end. Beam closes its workers one after another: none is waited for.

        One that has not come to work yet cannot be told: it is ended, for it holds nothing.
        """
        worker = self._worker
        if worker.process.poll() is None:
            worker.was_told_to_end = True
            if not worker.line.has_joined():
                worker.end()
        super().close()

    def stop_worker(self) -> None:
        """Leaves the process to end by itself; the watchdog ends it if it does not."""


class LocalRunner(FnApiRunner):
    """Beam's local runner, with workers that take the parts of a step from a queue."""

    def _get_bundle_manager(self, manager: Any) -> QueuedBundles:
        return queued_bundles(manager, self._progress_frequency)


def _as_text(address: endpoints_pb2.ApiServiceDescriptor) -> str:
    return str(text_format.MessageToString(address))
