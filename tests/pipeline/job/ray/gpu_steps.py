"""A pipeline of its own on a cluster: which processes and devices its steps have.

python gpu_steps.py ADDRESS OUT
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import apache_beam as beam

from pipeline.job.ray.cluster import WorkerNeeds, connect
from pipeline.job.ray.runner import RayRunner
from pipeline.job.watch import WorkerWatch
from schemas.memory import AT_START


def seen_by(step: str, number: int) -> list[Any]:
    """Returns what a step sees of where it runs."""
    names = ("CUDA_VISIBLE_DEVICES", *AT_START)
    return [step, [os.environ.get(name) for name in names], os.getpid(), number]


def write(rows: list[Any], path: str) -> None:
    """Writes what a step saw."""
    Path(path).write_text(json.dumps(rows))


def main(address: str, out: str) -> None:
    """Runs the pipeline."""
    connect(address)
    said: list[str] = []
    runner = RayRunner(1, None, WorkerNeeds(), WorkerWatch(), said.append)
    pipeline = beam.Pipeline(runner=runner)
    numbers = pipeline | beam.Create(range(20)) | beam.Reshuffle()
    plain = numbers | "Plain" >> beam.Map(lambda number: seen_by("plain", number))
    hinted = (
        plain
        | "Number" >> beam.Map(lambda row: row[-1])
        | "Hinted"
        >> beam.Map(lambda number: seen_by("hinted", number)).with_resource_hints(
            accelerator="type:any;count:1"
        )
    )
    for name, rows in (("plain", plain), ("hinted", hinted)):
        listed = rows | f"List{name}" >> beam.combiners.ToList()
        _ = listed | f"Write{name}" >> beam.Map(write, f"{out}.{name}")
    pipeline.run().wait_until_finish()
    seen = {name: json.loads(Path(f"{out}.{name}").read_text()) for name in ("plain", "hinted")}
    Path(out).write_text(json.dumps({**seen, "said": said}))


if __name__ == "__main__":
    main(*sys.argv[1:])
