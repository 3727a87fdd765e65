"""A run under way: what the loop calls, one method for each line of it."""

import dataclasses
import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from schemas.errors import LossNotFinite
from schemas.progress import RunProgress, at_work
from schemas.terminal import Console
from training.config import TrainConfig
from training.data.collate import Batch
from training.data.loader import PackedRows, PlannedStep, TrainingPlan, load_batches
from training.engine.checkpoint import RunState, save_checkpoint
from training.engine.launch import end_together, hearing
from training.engine.memory import resident_bytes
from training.engine.model_folder import gathered_weights, save_model_folder
from training.evaluation.alikeness import Alikeness, held_out_alikeness
from training.evaluation.control import Difference, compared, in_words, sample_results
from training.evaluation.level_figure import print_levels, write_levels
from training.evaluation.levels import found_levels, vectors_of
from training.evaluation.validation import Validation, validation_loss
from training.metrics.flops import ModelSize, peak_flops
from training.metrics.log import MetricsLog, draw_loss
from training.metrics.totals import RunningTotals, Totals
from training.run.folder import WRITTEN_AT_THE_END, RunFolder


def learning_rate_factor(step: int, num_steps: int, warmup_ratio: float) -> float:
    """Returns the share of the highest rate at a step: a linear rise, then half a cosine.

    Source: arXiv:2405.14129, section 4: cosine with 3 % warm-up.
    """
    warmup = math.ceil(num_steps * warmup_ratio)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, num_steps - warmup)
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def forward_seed(seed: int, step: int, row: int) -> int:
    """Returns the seed of a forward pass, whichever process makes it.

    Args:
        step: number of the optimizer step.
        row: number of the pass's first packed sequence among those of the step.
    """
    digest = hashlib.blake2b(f"{seed} {step} {row}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


class Run:
    """The parts of a run and where it stands. Used as a context, it hears SIGTERM."""

    def __init__(
        self,
        *,
        config: TrainConfig,
        folder: RunFolder,
        engine: Any,
        processor: Any,
        rows: PackedRows,
        plan: TrainingPlan,
        validation: Validation,
        words: float,
        start_vectors: Tensor | None,
        first_step: int,
        plan_fingerprint: str,
        size: ModelSize,
    ) -> None:
        self.config, self.out, self.engine, self.processor = config, folder.out, engine, processor
        self._folder = folder
        self.plan, self.first_step = plan, first_step
        self._rows, self._size = rows, size
        self._validation, self._words = validation, words
        self._start_vectors = start_vectors
        """(N, D) before the first step; None without alignment vectors."""
        self.alikeness: Alikeness | None = None
        """Of the last validation: whether the projector tells pictures apart."""
        self.control: Difference | None = None
        """Of the last validation: the loss with the right pictures and with exchanged ones."""
        self._plan_fingerprint = plan_fingerprint
        self.process, self.processes = dist.get_rank(), dist.get_world_size()
        self.is_first_process = self.process == 0
        self.totals = RunningTotals(config.model.num_levels, engine.device)
        self.is_stopping = False
        self._was_asked_to_stop = False
        self._log = MetricsLog(
            self.out,
            is_active=self.is_first_process,
            first_step=first_step,
            wandb_project=config.wandb_project,
        )
        self._progress = RunProgress(
            "training", plan.num_steps, first_step, is_active=self.is_first_process
        )
        self._rates = [group["lr"] for group in engine.optimizer.param_groups]
        self._held = ExitStack()

    def __enter__(self) -> "Run":
        """Starts to listen for SIGTERM and to show progress.

        Raises:
            SystemExit: in all processes, if one was asked to stop before.
        """
        with ExitStack() as held:
            old_handler = held.enter_context(hearing(self._ask_to_stop))
            held.callback(self._log.close)
            end_together(old_handler)
            held.enter_context(self._progress)
            self._held = held.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ends the data workers and closes the log; SIGTERM means again what it did."""
        self._held.close()

    def steps(self) -> Iterator[tuple[PlannedStep, Iterator[Batch]]]:
        """Yields the steps that are left, each with this process's batches."""
        data = self.config.data
        batches = load_batches(
            self._rows,
            (
                rows
                for step in self.plan.steps_from(self.first_step)
                for rows in step.share(self.process, self.processes, data.sequences_per_device)
            ),
            workers=data.workers,
            pin_memory=self.engine.device.type == "cuda",
        )
        self._held.enter_context(closing(batches))
        waited_for = self._timed(batches)
        for step in self.plan.steps_from(self.first_step):
            yield step, self._seeded(step.number, waited_for)

    def _seeded(self, step: int, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yields the batches of a step; random numbers follow from which rows they hold.

        So a resumed run draws the same ones, also on another number of processes.
        """
        for number in range(self.config.accumulation(self.processes)):
            batch = next(batches)
            # As PlannedStep.share deals them out.
            first = (number * self.processes + self.process) * self.config.data.sequences_per_device
            torch.manual_seed(forward_seed(self.config.seed, step, first))
            yield batch

    def set_learning_rate(self, step: PlannedStep) -> None:
        """Sets the rate of each group of parameters for this step."""
        factor = learning_rate_factor(
            step.number, self.plan.num_steps, self.config.optimizer.warmup_ratio
        )
        for group, rate in zip(self.engine.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor

    def loss_scale(self, step: PlannedStep) -> float:
        """Returns what turns a batch's loss sum into its part of the mean over the step.

        DeepSpeed divides by the batches of a step and by the processes; the mean is to be over
        the targets of all of them.
        """
        return self.processes * self.config.accumulation(self.processes) / step.num_targets

    def finish_step(self, step: PlannedStep) -> None:
        """Adds up the processes, looks after the loss, logs, and validates and saves when due."""
        keys, started_at = tuple(self.totals.keys), self.totals.started_at
        totals = self.totals.reduce(self._was_asked_to_stop)
        if not math.isfinite(totals.loss):
            raise LossNotFinite(
                f"the loss of step {step.number} is {totals.loss}; this process had the samples "
                f"{_named(keys)}. Lower optimizer.learning_rate, or train in fp32; the run "
                "goes on from its last checkpoint"
            )
        norm = self._gradient_norm()
        # DeepSpeed leaves out a step that it saw overflow; in fp32 it does not look.
        if not self.engine.was_step_applied() or not math.isfinite(norm):
            raise LossNotFinite(
                f"the gradient of step {step.number} is not finite, its loss was {totals.loss}; "
                f"this process had the samples {_named(keys)}. Lower optimizer.learning_rate, "
                "or train in fp32; the run goes on from its last checkpoint"
            )
        seconds = time.perf_counter() - started_at
        done = step.number + 1
        self.is_stopping = totals.stop_votes > 0
        if done % self.config.log_every_steps == 0 or done == self.plan.num_steps:
            histograms = {
                f"gate/level_{level}_weight_histogram": counts
                for level, counts in enumerate(totals.gate_histogram, start=1)
                if totals.gate_count
            }
            self._log.write(done, self._values(step, totals, norm, seconds), histograms)
        self._progress.advance(f"loss {totals.loss:.3f}  {totals.tokens / seconds:,.0f} tokens/s")
        is_last = done == self.plan.num_steps
        if not is_last and _is_due(done, self.config.validate_every_steps):
            self.validate(done)
        is_due = _is_due(done, self.config.save_every_steps)
        if is_due or self.is_stopping or (is_last and self.config.save_every_steps):
            self.save(done)

    def validate(self, done: int) -> None:
        """Writes the loss on the held-out samples, where there are some, and of the control."""
        held_out, levels = self._validation, self.config.model.num_levels
        if not held_out.order:
            return
        totals = validation_loss(self.engine, held_out.rows, held_out.order, levels)
        values = {"validation/loss": totals.loss, **self._control_values()}
        for level, loss in totals.level_losses.items():
            values[f"validation/level_{level}_loss"] = loss
        self._log.write(done, values)
        self.totals = RunningTotals(self.config.model.num_levels, self.engine.device)

    def _control_values(self) -> dict[str, float]:
        """Returns the loss of held-out samples with exchanged pictures, beside their own."""
        held_out, levels = self._validation, self.config.model.num_levels
        if not held_out.control_order:
            return {}
        orders = held_out.control_order
        right = sample_results(self.engine, held_out.rows, orders, levels)
        other = sample_results(self.engine, held_out.control_rows, orders, levels)
        self.control = compared(right, other)
        self.alikeness = held_out_alikeness(self.engine, held_out.rows, orders, levels, self._words)
        alike = (
            {}
            if self.alikeness is None
            else {
                "pictures/spread": self.alikeness.spread,
                "pictures/words_spread": self.alikeness.words,
                "pictures/mean_cosine": self.alikeness.cosine,
            }
        )
        return {
            **alike,
            "validation/pictured_loss": self.control.right,
            "validation/exchanged_loss": self.control.exchanged,
            "validation/picture_gain_nats": self.control.difference,
            "validation/picture_gain_low_nats": self.control.low,
            "validation/picture_gain_high_nats": self.control.high,
        }

    def look_at_levels(self) -> None:
        """Writes and shows what became of the levels: their vectors, the gate, being told each."""
        module = self.engine.module
        if self._start_vectors is None or not self.config.told_samples:
            return
        weights = gathered_weights(module.level_vectors)
        weight = weights["weight"] if self.is_first_process else self._start_vectors
        found = found_levels(
            self.engine,
            self._validation.rows,
            self._validation.told_order,
            vectors_of(weight, self._start_vectors),
            align_token_id=module.config.align_token_id,
            form=self.config.data.form,
        )
        if self.is_first_process:
            self._folder.claim(WRITTEN_AT_THE_END)
            write_levels(found, self.out)
            print_levels(found)

    def save(self, done: int) -> None:
        """Writes a checkpoint after `done` steps."""
        state = RunState(
            step=done,
            config=dataclasses.asdict(self.config),
            plan_fingerprint=self._plan_fingerprint,
            init=self._folder.init_files(),
        )
        folder = self.out / "checkpoints"
        hours = self.config.keep_checkpoint_every_hours
        with at_work("saving a checkpoint"):
            save_checkpoint(self.engine, folder, state, self.config.keep_checkpoints, hours)
        self.totals = RunningTotals(self.config.model.num_levels, self.engine.device)

    def save_model(self) -> None:
        """Writes the model and its processor for transformers, to `OUT/model`."""
        if self.is_first_process:
            self._folder.claim(WRITTEN_AT_THE_END)
        with at_work("writing the model"):
            save_model_folder(self.engine.module, self.processor, self.out / "model")
        if self.is_first_process:
            draw_loss(self.out / "metrics.jsonl", self.out / "loss.png")
            if self.control is not None:
                Console(stderr=True).print(in_words(self.control), highlight=False)
            if self.alikeness is not None:
                Console(stderr=True).print(str(self.alikeness), highlight=False)
            self._folder.finish()

    def _timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self.totals.waited(time.perf_counter() - start)
            if batch is None:
                return
            yield batch

    def _gradient_norm(self) -> float:
        """Returns the norm of the step's gradient before it was clipped."""
        norm = self.engine.get_global_grad_norm()
        assert norm is not None, "every ZeRO stage has one, and without ZeRO build.py notes it"
        return float(norm)

    def _values(
        self, step: PlannedStep, totals: Totals, norm: float, seconds: float
    ) -> dict[str, float]:
        groups = self.engine.optimizer.param_groups
        values = {
            "train/loss": totals.loss,
            "train/learning_rate": max(group["lr"] for group in groups),
            **{f"train/{group['part']}_learning_rate": group["lr"] for group in groups},
            "train/gradient_norm": norm,
            "train/epoch": float(step.epoch),
            "train/samples": totals.samples,
            "train/samples_checksum": totals.key_sum,
            "speed/tokens_per_second": totals.tokens / seconds,
            "speed/target_tokens_per_second": totals.targets / seconds,
            "speed/samples_per_second": totals.samples / seconds,
            "speed/step_seconds": seconds,
            "speed/data_wait_ratio": totals.wait_seconds / (seconds * self.processes),
            "speed/padding_ratio": 1.0 - totals.tokens / max(1.0, totals.padded_tokens),
        }
        if (resident := resident_bytes()) is not None:
            values["memory/resident_bytes"] = float(resident)
        if self.config.data.on_corrupt == "skip":
            values["train/skipped_samples"] = totals.skipped
        for level, loss in totals.level_losses.items():
            values[f"train/level_{level}_loss"] = loss
        for level, weight in totals.gate_means.items():
            values[f"gate/level_{level}_weight"] = weight
        if self.engine.device.type == "cuda":
            values.update(self._gpu_values(totals, seconds))
        return values

    def _gpu_values(self, totals: Totals, seconds: float) -> dict[str, float]:
        values = {"memory/peak_bytes": float(torch.cuda.max_memory_allocated())}
        peak = peak_flops(torch.cuda.get_device_name())
        if peak is not None and totals.tokens:
            mean_square = totals.squared_lengths / totals.tokens
            flops = self._size.step_flops(
                int(totals.tokens), int(totals.targets), mean_square, int(totals.images)
            )
            values["speed/mfu_ratio"] = flops / seconds / (peak * self.processes)
        return values

    def _ask_to_stop(self, number: int, frame: object) -> None:
        self._was_asked_to_stop = True


NAMED = 10
"""Most samples that a message names."""


def _named(keys: Sequence[str]) -> str:
    """Returns the keys in words, the first of many."""
    more = f" and {len(keys) - NAMED:,} more" if len(keys) > NAMED else ""
    return ", ".join(keys[:NAMED]) + more


def _is_due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0
