"""A worker on a Ray cluster: an actor whose process holds Beam's SDK harness."""

import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import ray

Prepare = Callable[[], None]
"""What a job has its workers do before they begin; an error in it is the job's."""


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Where a worker came to live."""

    host: str
    process: int
    node: str
    """As Ray names it."""


class BeamWorker:
    """One worker, in a process of its own that Ray starts and ends."""

    def is_placed(self) -> bool:
        """Returns at once: whoever is answered knows that Ray found room for this worker."""
        return True

    def begin(self, has_gpu: bool, prepare: Prepare | None) -> Whereabouts:
        """Returns where this worker is, once it is ready to serve.

        Args:
            has_gpu: whether Ray gave it one, and named it to CUDA.
        """
        if not has_gpu:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        if prepare is not None:
            prepare()
        node = ray.get_runtime_context().get_node_id()
        return Whereabouts(socket.gethostname(), os.getpid(), node)

    def serve(self, environment: Mapping[str, str], begun: Whereabouts) -> None:
        """Works for a runner until it is told that nothing more is wanted.

        A runner that is gone ends the process at once, in the middle of whatever it does.

        Args:
            environment: as Beam's containers get it: where the runner is, and this worker's name.
            begun: what `begin` gave; Ray does not call this where there is none.
        """
        from apache_beam.runners.worker import sdk_worker_main

        is_over = False
        try:
            log_handler, harness, _ = sdk_worker_main.create_harness(dict(environment))
            harness.run()
            if log_handler is not None:
                log_handler.close()
            is_over = True
        finally:
            if not is_over:
                os._exit(1)
