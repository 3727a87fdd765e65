"""What both sides of the benchmark train and count, and one epoch of a stage by our trainer.

Both train the same model from the same weights, with AdamW, on the same samples in the same
arithmetic. What each side measures is what it does from the end of its first steps, in which caches
fill and kernels compile, to the end of its last whole one. `usual.py` is the other side.
"""

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

LEFT_OUT = {"cpu": (1, 0), "cuda": (3, 1)}
"""First and last steps that are not counted: the last of several sequences has what is left."""
WORKERS = 2
"""Of either side on a GPU. With the four batches that our loader lets each make ahead, most of
those of the counted steps are made while steps are counted: a slow loader shows as waiting."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is trained, and where."""

    folder: Path
    """With `stage_1` and `stage_2`, `language_model` and `vision_tower`."""
    device: str
    shape: str
    """tiny, smollm2, 3.5b or 7b."""
    stage: int
    seed: int

    def config(self) -> Any:
        """Returns our configuration; the usual side takes its model, data and precision from it."""
        from benchmarks.train.mixture import NUM_LEVELS
        from benchmarks.train.models import LARGE
        from training.config import (
            STAGE_1,
            STAGE_2,
            DataConfig,
            ModelConfig,
            OptimizerConfig,
            ParallelConfig,
            TrainConfig,
        )

        is_large = self.shape in LARGE
        tower = self.folder / "vision_tower"
        learns_all = self.stage == 2
        # A token's activations are 0.2 MB a layer: 70 GB of stage 1's 4 sequences in 32 layers, and
        # 15 GB of frozen weights. Stage 2 has 108 GB of weights and states to keep (see models.py).
        recomputes = is_large and learns_all
        # Four pairs of 576 patches and a caption are 2,360 tokens; 2,048 would hold three.
        tokens = (2048 if learns_all else 2432) if is_large else 768
        return TrainConfig(
            model=ModelConfig(
                language_model=str(self.folder / "language_model"),
                vision_tower=f"timm:local-dir:{tower}" if self.shape == "smollm2" else str(tower),
                num_levels=NUM_LEVELS,
            ),
            data=DataConfig(
                form="conversation" if learns_all else "caption",
                tokens_per_sequence=tokens,
                sequences_per_step=8 if is_large else 1,
                sequences_per_device=4 if is_large else 1,
                validation_ratio=0.0,
                workers=WORKERS if self.device == "cuda" else 0,
            ),
            optimizer=OptimizerConfig(learning_rate=1e-4),
            parallel=ParallelConfig(
                zero_stage=1 if is_large else 0,
                precision="bf16" if is_large else "fp32",
                activation_checkpointing=recomputes,
            ),
            train_parts=STAGE_2 if learns_all else STAGE_1,
            seed=self.seed,
        )

    def data(self) -> tuple[str, ...]:
        """Returns the dataset folders."""
        return (str(self.folder / f"stage_{self.stage}"),)


@dataclasses.dataclass
class Clock:
    """What happened until the end of each step."""

    wall: list[float] = dataclasses.field(default_factory=list)
    processor: list[float] = dataclasses.field(default_factory=list)

    def tick(self) -> None:
        """Notes the end of a step."""
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.wall.append(time.perf_counter())
        self.processor.append(time.process_time())

    def rates(self, batches: list[dict[str, float]], device: str) -> dict[str, float]:
        """Returns what the counted steps did in a second; `batches` has an entry for each step."""
        first, last = LEFT_OUT[device]
        stop = len(self.wall) - last
        used = batches[first:stop]
        total = {name: float(sum(batch[name] for batch in used)) for name in used[0]}
        seconds = self.wall[stop - 1] - self.wall[first - 1]
        processor_seconds = self.processor[stop - 1] - self.processor[first - 1]
        found = {
            "targets_per_second": total["targets"] / seconds,
            "targets_per_processor_second": total["targets"] / processor_seconds,
            "wait_ratio": total["wait"] / seconds,
            "padding_ratio": 1 - total["tokens"] / total["padded"],
            "seconds": seconds,
            "steps": float(len(used)),
        }
        if "worked" in total:
            found["mfu_ratio"] = total["worked"] / seconds
        return found


def run_ours(setting: Setting) -> dict[str, float]:
    """Returns the rates of our trainer: the loop of training/train.py, a clock beside it."""
    import torch

    from schemas.memory import keep_freed_memory
    from training.engine.deepspeed import start_distributed
    from training.metrics.log import read_metrics
    from training.run.build import build
    from training.run.folder import RunFolder
    from training.train import take_steps

    if setting.device == "cpu":
        keep_freed_memory()  # as the command does
    config = setting.config()
    clock = Clock()
    with tempfile.TemporaryDirectory() as out:
        start_distributed()
        run = build(RunFolder(out=Path(out), config=config, data=setting.data(), init=None))
        with run:
            for _ in take_steps(run):
                clock.tick()
        lines = read_metrics(Path(out) / "metrics.jsonl")
    entries = []
    for line in lines:
        seconds = line["speed/step_seconds"]
        tokens = line["speed/tokens_per_second"] * seconds
        entries.append(
            {
                "targets": line["speed/target_tokens_per_second"] * seconds,
                "tokens": tokens,
                "padded": tokens / (1 - line["speed/padding_ratio"]),
                "wait": line["speed/data_wait_ratio"] * seconds,
            }
        )
        if "speed/mfu_ratio" in line:
            entries[-1]["worked"] = line["speed/mfu_ratio"] * seconds
    found = clock.rates(entries, setting.device)
    if setting.device == "cuda":
        found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return found
