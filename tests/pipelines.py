"""Steps of the graph, run in this process."""

from collections.abc import Callable
from pathlib import Path

import apache_beam as beam


def shard_numbers(folder: Path, step: Callable[[beam.Pipeline], beam.PCollection]) -> list[int]:
    """Returns the numbers of the shards that a step gives, sorted.

    Args:
        folder: where they are noted for a moment: the runner pickles what it runs.
        step: adds the step to a pipeline.
    """
    out = folder / "shards-given"
    out.mkdir(parents=True, exist_ok=True)
    with beam.Pipeline("FnApiRunner") as pipeline:
        _ = step(pipeline) | "Note" >> beam.Map(lambda shard: (out / str(shard)).touch())
    numbers = sorted(int(path.name) for path in out.iterdir())
    for path in out.iterdir():
        path.unlink()
    out.rmdir()
    return numbers
