"""A pipeline that runs while this process looks at its progress and after its workers."""

import threading
from collections.abc import Sequence

import apache_beam as beam
from apache_beam.runners.runner import PipelineState

from pipeline.job.failures import JobFailed, explained, worker_died
from pipeline.job.terminal import ProgressDisplay
from pipeline.job.watch import WorkerWatch
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.terminal import Console

PAUSE_SECONDS = 0.25
"""Between two looks at the job's thread and workers."""

ENDING_LOOKS = 40
"""How often a pipeline whose workers are gone is looked at before it is left to itself."""


class _PipelineThread(threading.Thread):
    """Runs the pipeline, so that the main thread can watch it; keeps the error it ended with."""

    def __init__(self, pipeline: beam.Pipeline) -> None:
        super().__init__(name="pipeline", daemon=True)
        self._pipeline = pipeline
        self.error: BaseException | None = None
        self.state: str = PipelineState.UNKNOWN

    def run(self) -> None:
        try:
            result = self._pipeline.run()
            self.state = result.wait_until_finish() or result.state
        except BaseException as error:  # noqa: BLE001 - raised again by the main thread
            self.error = error


def run_watched(
    pipeline: beam.Pipeline,
    layout: DatasetLayout,
    stages: Sequence[Stage],
    watch: WorkerWatch,
    console: Console,
) -> None:
    """Runs a pipeline to its end, shows its progress and looks after its workers.

    Raises:
        JobFailed: if a stage failed or a worker died; the workers that are left are ended.
        ConfigError: if a worker found that the configuration cannot work.
        DatasetError: if a worker found that the folder does not hold what it needs.
    """
    thread = _PipelineThread(pipeline)
    try:
        with ProgressDisplay(layout, stages, console) as display:
            thread.start()
            while thread.is_alive():
                thread.join(PAUSE_SECONDS)
                display.refresh()
                lost = watch.lost()
                if lost and thread.is_alive():
                    _end(thread, watch)
                    raise worker_died(layout, lost)
    finally:
        watch.end_all()
    if thread.error is not None:
        raise explained(thread.error, layout, watch.ended_badly()) from thread.error
    if thread.state != PipelineState.DONE:
        raise JobFailed(f"the runner ended the job in the state {thread.state}")


def _end(thread: _PipelineThread, watch: WorkerWatch) -> None:
    """Ends all workers, and gives the pipeline the time to take note of it."""
    watch.end_all()
    for _ in range(ENDING_LOOKS):
        if not thread.is_alive():
            return
        watch.give_up()
        thread.join(PAUSE_SECONDS)
