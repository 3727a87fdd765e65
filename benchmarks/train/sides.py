"""One epoch of a stage by our trainer, or by the Trainer of transformers.

Both train the same model from the same weights, with AdamW, on the same samples in the same
arithmetic. What each side measures is what it does from the end of its first steps, in which caches
fill and kernels compile, to the end of its last whole one.
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
ROWS = 8
"""Rows of the usual side's batches: the Trainer's default."""
GROUPED_BATCHES = 50
"""Batches among whose samples it groups by length: the Trainer's default for a large dataset."""


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
            DataConfig,
            ModelConfig,
            OptimizerConfig,
            ParallelConfig,
            TrainConfig,
        )
        from training.model.trainable import STAGE_1, STAGE_2

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
    """Returns the rates of our trainer: the loop of training/train.py with a clock in it."""
    import torch

    from schemas.memory import keep_freed_memory
    from training.engine.deepspeed import start_distributed
    from training.loss import batch_loss
    from training.metrics.log import read_metrics
    from training.run.build import build
    from training.run.folder import RunFolder

    if setting.device == "cpu":
        keep_freed_memory()  # as the command does
    config = setting.config()
    clock = Clock()
    with tempfile.TemporaryDirectory() as out:
        start_distributed()
        run = build(RunFolder(out=Path(out), config=config, data=setting.data(), init=None))
        with run:
            for step, batches in run.steps():
                run.set_learning_rate(step)
                for batch in batches:
                    loss = batch_loss(run.engine, batch, config.model.num_levels)
                    run.engine.backward(loss.total * run.loss_scale(step))
                    run.engine.step()
                    run.totals.add(batch, loss)
                run.finish_step(step)
                clock.tick()
                if run.is_stopping:
                    break
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


def run_usual(setting: Setting, groups_by_length: bool) -> dict[str, float]:
    """Returns the rates of the Trainer of transformers on padded rows of one sample each.

    Groups are made as the Trainer makes those of a large dataset; of a small one it makes worse
    ones. Their batches are shuffled: its own order begins with the longest ones, and the first
    steps, which are left out, would not stand for the others.
    """
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments
    from transformers.trainer_pt_utils import get_length_grouped_indices

    from training.data.dataset import TrainDataset
    from training.parts import assemble

    torch.manual_seed(setting.seed)
    config = setting.config()
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, attention="sdpa"))
    parts = assemble(config, None)
    dataset = TrainDataset(setting.data())
    encoder = parts.encoder(config.data)
    samples = Samples(parts.rows(dataset, encoder), len(dataset))
    whole = [encoder.encode(dataset[i]) for i in range(len(dataset))]
    lengths = [len(sample.input_ids) for sample in whole if sample is not None]
    entries: list[dict[str, Any]] = []
    clock = Clock()

    class Ticks(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.tick()

    class WaitingTrainer(Trainer):
        """The Trainer with a watch on its wait for data, and a fair order of grouped batches."""

        def get_batch_samples(self, *arguments: Any, **named: Any) -> Any:
            began = time.perf_counter()
            found = super().get_batch_samples(*arguments, **named)
            waits.append(time.perf_counter() - began)
            for inputs in found[0]:
                entries.append(counts(inputs))
            return found

        def _get_train_sampler(self, *arguments: Any, **named: Any) -> Any:
            if not groups_by_length:
                return super()._get_train_sampler(*arguments, **named)
            generator = torch.Generator().manual_seed(setting.seed)
            order = get_length_grouped_indices(
                lengths, ROWS, mega_batch_mult=GROUPED_BATCHES, generator=generator
            )
            batches = [order[start : start + ROWS] for start in range(0, len(order), ROWS)]
            turns = torch.randperm(len(batches), generator=generator).tolist()
            return [sample for turn in turns for sample in batches[turn]]

    waits: list[float] = []
    is_large = config.parallel.precision == "bf16"
    with tempfile.TemporaryDirectory() as out:
        settings = TrainingArguments(
            output_dir=out, num_train_epochs=1, per_device_train_batch_size=ROWS,
            learning_rate=1e-4, lr_scheduler_type="cosine", report_to=[], save_strategy="no",
            logging_strategy="no", use_cpu=setting.device == "cpu", bf16=is_large,
            gradient_checkpointing=config.parallel.activation_checkpointing,
            remove_unused_columns=False, disable_tqdm=True,
            dataloader_num_workers=config.data.workers, seed=setting.seed,
        )  # fmt: skip
        trainer = WaitingTrainer(
            model=parts.model, args=settings, train_dataset=samples, data_collator=pad,
            callbacks=[Ticks()],
        )  # fmt: skip
        trainer.train()
    for entry, wait in zip(entries, waits, strict=False):
        entry["wait"] = wait
    found = clock.rates(entries, setting.device)
    if setting.device == "cuda":
        found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return found


class Samples:
    """Encoded samples by number, as the usual side's workers make them."""

    def __init__(self, rows: Any, count: int) -> None:
        self._rows, self._count = rows, count

    def __len__(self) -> int:
        """Returns how many there are."""
        return self._count

    def __getitem__(self, index: int) -> Any:
        """Returns a sample's tokens and pixels."""
        return self._rows.encoded(index)


def pad(samples: list[Any]) -> dict[str, Any]:
    """Returns rows of one sample each, padded to the longest."""
    import torch

    from training.model.inputs import IGNORE_INDEX

    tokens = [sample.tokens for sample in samples]
    width = max(len(sample.input_ids) for sample in tokens)

    def fill(name: str, filler: int) -> Any:
        values = [getattr(sample, name) for sample in tokens]
        return torch.tensor([list(v) + [filler] * (width - len(v)) for v in values])

    batch = {"input_ids": fill("input_ids", 0), "labels": fill("labels", IGNORE_INDEX)}
    batch["prompt_mask"] = fill("prompt_mask", 0).bool()
    lengths = torch.tensor([len(sample.input_ids) for sample in tokens])
    batch["attention_mask"] = (torch.arange(width)[None] < lengths[:, None]).long()
    images = [s.pixel_values for s in samples if s.pixel_values is not None]
    if images:
        batch["pixel_values"] = torch.cat(images)
    levels = [s.alignment_level for s in samples if s.alignment_level is not None]
    if levels:  # of stage 1, where each has one
        batch["alignment_level"] = torch.tensor(levels)
    return batch


def counts(batch: dict[str, Any]) -> dict[str, Any]:
    """Returns what is in a padded batch, not yet read back from the device."""
    return {
        "targets": (batch["labels"] >= 0).sum(),
        "tokens": batch["attention_mask"].sum(),
        "padded": batch["attention_mask"].numel(),
    }
