"""One epoch of a stage by the Trainer of transformers, on padded rows of one sample each."""

import dataclasses
import tempfile
import time
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_pt_utils import get_length_grouped_indices

from benchmarks.train.sides import Clock, Setting
from training.config import TrainConfig
from training.data.dataset import TrainDataset
from training.model.inputs import IGNORE_INDEX
from training.parts import assemble

ROWS = 8
"""Rows of the usual side's batches: the Trainer's default."""
GROUPED_BATCHES = 50
"""Batches among whose samples it groups by length: the Trainer's default for a large dataset."""


class TimedTrainer(Trainer):
    """The Trainer with a watch on its wait for data, and a fair order of grouped batches."""

    def __init__(self, *, lengths: list[int] | None, clock: Clock, **settings: Any) -> None:
        """Prepares to train.

        Args:
            lengths: of the samples, to group them by; None leaves them ungrouped.
            clock: told of the end of each step.
            settings: the Trainer's own.
        """
        super().__init__(callbacks=[_Ticks(clock)], **settings)
        self._lengths = lengths
        self.entries: list[dict[str, Any]] = []
        """What is in each batch."""
        self.waits: list[float] = []
        """Seconds before each step in which no data was there."""

    def get_batch_samples(self, *arguments: Any, **named: Any) -> Any:
        """Returns the Trainer's batches of a step."""
        began = time.perf_counter()
        found = super().get_batch_samples(*arguments, **named)
        self.waits.append(time.perf_counter() - began)
        self.entries += [counts(inputs) for inputs in found[0]]
        return found

    def _get_train_sampler(self, *arguments: Any, **named: Any) -> Any:
        if self._lengths is None:
            return super()._get_train_sampler(*arguments, **named)
        generator = torch.Generator().manual_seed(self.args.seed)
        order = get_length_grouped_indices(
            self._lengths, ROWS, mega_batch_mult=GROUPED_BATCHES, generator=generator
        )
        batches = [order[start : start + ROWS] for start in range(0, len(order), ROWS)]
        turns = torch.randperm(len(batches), generator=generator).tolist()
        return [sample for turn in turns for sample in batches[turn]]


class _Ticks(TrainerCallback):
    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._clock.tick()


def run_usual(setting: Setting, groups_by_length: bool) -> dict[str, float]:
    """Returns the rates of the Trainer of transformers.

    Groups are made as the Trainer makes those of a large dataset; of a small one it makes worse
    ones. Their batches are shuffled: its own order begins with the longest ones, and the first
    steps, which are left out, would not stand for the others.
    """
    torch.manual_seed(setting.seed)
    config = setting.config()
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, attention="sdpa"))
    parts = assemble(config, None)
    dataset = TrainDataset(setting.data())
    encoder = parts.encoder(config.data)
    whole = [encoder.encode(dataset[i]) for i in range(len(dataset))]
    lengths = [len(sample.input_ids) for sample in whole if sample is not None]
    clock = Clock()
    with tempfile.TemporaryDirectory() as out:
        trainer = TimedTrainer(
            lengths=lengths if groups_by_length else None,
            clock=clock,
            model=parts.model,
            args=_arguments(setting, config, out),
            train_dataset=Samples(parts.rows(dataset, encoder), len(dataset)),
            data_collator=pad,
        )
        trainer.train()
    for entry, wait in zip(trainer.entries, trainer.waits, strict=False):
        entry["wait"] = wait
    found = clock.rates(trainer.entries, setting.device)
    if setting.device == "cuda":
        found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return found


def _arguments(setting: Setting, config: TrainConfig, out: str) -> TrainingArguments:
    return TrainingArguments(
        output_dir=out,
        num_train_epochs=1,
        per_device_train_batch_size=ROWS,
        learning_rate=1e-4,
        lr_scheduler_type="cosine",
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        use_cpu=setting.device == "cpu",
        bf16=config.parallel.precision == "bf16",
        gradient_checkpointing=config.parallel.activation_checkpointing,
        remove_unused_columns=False,
        disable_tqdm=True,
        dataloader_num_workers=config.data.workers,
        seed=setting.seed,
    )


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
