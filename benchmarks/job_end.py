"""How soon a job is over once its last stage is, with many workers that each hold a CLIP model.

    python benchmarks/job_end.py                                  # 16 workers, a tiny model
    python benchmarks/job_end.py --model MODEL --pretrained FILE  # another one

Each worker of the local runner loads the model, scores a picture with it as the score stage does,
and waits until all others have, too; the last one notes the time. Printed are the seconds from then
to the end of the job, when none of its processes is left, and what the workers computed in them: on
a machine with other work to do, only the second says what ending costs.
"""

import argparse
import io
import json
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import apache_beam as beam
import open_clip
import psutil
import torch
from PIL import Image

from pipeline.job.log import logging_to_folder
from pipeline.job.runners import choose_runner
from pipeline.job.watched import run_watched
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from schemas.terminal import Console
from scoring.clip.scorer import shared_scorer
from scoring.config import ScoreConfig

WAIT_SECONDS = 900.0
"""Longest wait for the other workers to hold their models."""

TINY: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
"""What a model weighs adds to the memory that ends with a worker, not to what ending does."""


class HoldsModel(beam.DoFn):
    """Scores one picture, and holds the model until all workers have one."""

    def __init__(self, config: ScoreConfig, folder: str, workers: int) -> None:
        super().__init__()
        self._config, self._folder, self._workers = config, Path(folder), workers

    def process(self, shard: int) -> list[int]:
        """Loads the model, uses it, and notes when, and what this process has computed so far."""
        picture = io.BytesIO()
        Image.new("RGB", (64, 64), "red").save(picture, "png")
        shared_scorer(self._config).score([picture.getvalue()], ["a red square"])
        (self._folder / f"holds-{os.getpid()}").touch()
        started = time.monotonic()
        while len(list(self._folder.glob("holds-*"))) < self._workers:
            if time.monotonic() - started > WAIT_SECONDS:
                break
            time.sleep(0.5)
        times = os.times()
        noted = {"process": os.getpid(), "at": time.time(), "cpu": times.user + times.system}
        (self._folder / f"done-{shard}").write_text(json.dumps(noted))
        return [shard]


def main() -> None:
    """Runs the job and prints how long it took to end."""
    options = parse_options()
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or tiny_model(Path(folder))
        config = ScoreConfig(
            model=model,
            pretrained=options.pretrained,
            device="cpu",
            precision="fp32",
            threads=1,
            decode_threads=1,
        )
        measure(config, Path(folder), options.workers)


def parse_options() -> argparse.Namespace:
    """Returns the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--model", help="of open_clip, or local-dir:FOLDER")
    parser.add_argument("--pretrained", help="its weights, where the model's name does not say")
    return parser.parse_args()


def tiny_model(folder: Path) -> str:
    """Returns the name of a tiny model with new weights, written to a folder."""
    place = folder / "model"
    place.mkdir()
    (place / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY}))
    torch.save(open_clip.CLIP(**TINY).state_dict(), place / "open_clip_model.pth")
    return f"local-dir:{place}"


def measure(config: ScoreConfig, folder: Path, workers: int) -> None:
    """Prints how long the job took to end, and what its workers computed meanwhile."""
    layout = DatasetLayout(str(folder / "data"))
    Path(layout.run).mkdir(parents=True)
    chosen = choose_runner("local", workers, (), layout)
    pipeline = beam.Pipeline(runner=chosen.runner, options=chosen.options)
    shards = pipeline | beam.Create(range(workers)) | beam.Reshuffle()
    _ = shards | beam.ParDo(HoldsModel(config, str(folder), workers))
    with logging_to_folder(layout):
        run_watched(pipeline, layout, (Stage.SCORE,), chosen.watch, Console(file=io.StringIO()))
    over = time.time()
    noted = [json.loads(path.read_text()) for path in folder.glob("done-*")]
    so_far = {one["process"]: one["cpu"] for one in sorted(noted, key=lambda one: one["at"])}
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    computed = spent.ru_utime + spent.ru_stime - sum(so_far.values())
    left = [child for child in psutil.Process().children() if child.status() != "zombie"]
    print(
        f"{len(so_far)} workers that hold a model, load {os.getloadavg()[0]:.0f}: over "
        f"{over - max(one['at'] for one in noted):.1f} s after the last was done, in which the "
        f"workers computed for {computed:.1f} s; {len(left)} processes left"
    )


if __name__ == "__main__":
    main()
