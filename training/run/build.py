"""Puts a run together: model, plan, batches, DeepSpeed's engine, and where it goes on."""

import hashlib
import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from rich.table import Table
from torch import nn

from schemas.errors import ConfigError, DatasetError, StorageError
from schemas.progress import at_work, show_progress
from schemas.terminal import Console
from training.config import DataConfig, TrainConfig
from training.data.dataset import TrainDataset
from training.data.features import FeatureStore
from training.data.lengths import Encoder, MeasuredLengths, SampleLengths, measure_lengths
from training.data.loader import PackedRows, Rows, TrainingPlan
from training.data.mapped import digest_of
from training.data.plan import Curriculum
from training.engine.checkpoint import latest_checkpoint, load_optimizer, load_weights, read_state
from training.engine.launch import EarlySigterm, by_first, end_together, together
from training.engine.start import start_engine
from training.evaluation.control import exchanged_samples
from training.evaluation.validation import VALIDATION_WINDOW, Validation, validation_order
from training.metrics.log import check_wandb
from training.model.start import word_spread
from training.model.trainable import trainable_table
from training.parts import Assembled, assemble, check_packing, set_attention
from training.run.folder import RunFolder
from training.run.run import Run
from training.run.vision import (
    fill_store,
    open_store,
    samples_of_start,
    start_of_projector,
)


def build(folder: RunFolder) -> Run:
    """Returns a run, ready for its next step.

    Raises:
        ConfigError: if the configuration, the data and what is in the folder do not go together.
    """
    config, data, out, init = folder.config, folder.data, folder.out, folder.init
    is_first = dist.get_rank() == 0
    config.accumulation(dist.get_world_size())
    folder.check()
    check_wandb(config.wandb_project)
    torch.manual_seed(config.seed)
    dataset = together(lambda: TrainDataset(data, folder.rows))
    dataset.check_levels(config.model.num_levels, are_told=config.tells_levels)
    parts = assemble(config, init)
    check_part_rates(parts.model, config)
    with at_work("trying out attention"):
        check_packing(parts, config, init)
        attention = set_attention(parts, config)
    encoder = parts.encoder(config.data)
    lengths = _lengths(dataset, encoder, is_first)
    ratio = 0.0 if config.data.validation_data else config.data.validation_ratio
    held_out = dataset.is_held_out(ratio)
    plan = together(lambda: _training_plan(config, dataset, lengths, held_out, encoder))
    validation = _held_out(config, encoder, dataset, lengths, held_out, is_first)
    if is_first and not config.data.rows_folder:
        dataset.kept.remove_others()
    is_allowed = ~held_out & (lengths.tokens > 0)
    first = samples_of_start(config, dataset, is_allowed) if init is None else []
    store = _filled_store(parts, config, out, dataset, plan, first, validation)
    rows = parts.rows(dataset, encoder, config.data.on_corrupt, store)
    if init is None:
        start_of_projector(parts, config, dataset, first, encoder, store, out)
    size = parts.size(config)
    vectors = parts.model.level_vectors.weight if parts.model.config.has_align_token else None
    start_vectors = None if vectors is None else vectors.detach().clone()
    words = word_spread(parts.model.get_input_embeddings().weight)  # type: ignore[arg-type]
    if is_first:
        _show(parts.model, dataset, lengths, held_out, plan, config)
        Console(stderr=True).print(f"attention: {attention}", highlight=False)
    checkpoint = by_first(lambda: latest_checkpoint(out / "checkpoints"))
    fingerprint = _plan_fingerprint(config, dataset, encoder)
    first_step = _check_checkpoint(checkpoint, fingerprint, folder)
    engine = _engine_at(config, parts.model, checkpoint, first_step)
    if is_first:  # only now: a first attempt that was no good leaves the folder free
        folder.write_config()
    return Run(
        config=config,
        folder=folder,
        engine=engine,
        processor=parts.processor,
        rows=rows,
        plan=plan,
        validation=_validation_rows(parts, config, validation, encoder, store),
        words=words,
        start_vectors=start_vectors,
        first_step=first_step,
        plan_fingerprint=fingerprint,
        size=size,
    )


def check_part_rates(model: nn.Module, config: TrainConfig) -> None:
    """Raises ConfigError if a part has a learning rate of its own and nothing in it learns."""
    learning = {part.name for part in trainable_table(model) if part.num_trainable}
    for name in config.optimizer.part_learning_rates:
        if name not in learning:
            raise ConfigError(
                f"optimizer.part_learning_rates names {name!r}, of which nothing learns: take it "
                f"out, or let it learn by train_parts; {', '.join(sorted(learning))} do"
            )


def _training_plan(
    config: TrainConfig,
    dataset: TrainDataset,
    lengths: MeasuredLengths,
    held_out: np.ndarray,
    encoder: Encoder,
) -> TrainingPlan:
    """Returns which samples share a sequence at which step.

    Raises:
        ConfigError: if no sample is left to train on.
    """
    plan = TrainingPlan(
        dataset.by_key,
        lengths,
        _Copies(dataset, held_out, config.data),
        config.data,
        seed=config.seed,
        epochs=config.epochs,
        max_steps=config.max_steps,
        curriculum=_curriculum(config, dataset),
        kept=dataset.kept,
        identity=_plan_identity(config, dataset, encoder),
    )
    if plan.num_steps == 0:
        raise ConfigError(
            f"{', '.join(dataset.folders)}: no sample is left to train on; of {len(dataset):,}, "
            f"{int(held_out.sum()):,} are held out, {lengths.losses}"
        )
    return plan


def _engine_at(
    config: TrainConfig, model: nn.Module, checkpoint: Path | None, first_step: int
) -> Any:
    """Returns DeepSpeed's engine, model and optimizer as a checkpoint has them, if there is one."""
    if checkpoint is not None:
        with at_work("loading the checkpoint"):
            load_weights(model, checkpoint)
    with at_work("starting DeepSpeed's engine"):
        engine = start_engine(config, model)
    if checkpoint is not None:
        with at_work("loading the optimizer's state"):
            load_optimizer(engine, checkpoint, first_step)
    return engine


def _curriculum(config: TrainConfig, dataset: TrainDataset) -> Curriculum | None:
    """Returns when samples of which level are seen; None where their levels do not matter.

    Raises:
        ConfigError: if they are to matter, and no sample has one.
    """
    data = config.data
    if (data.level_weights or data.level_curriculum != "none") and not dataset.highest_level:
        raise ConfigError(
            f"{', '.join(dataset.folders)}: no sample has an alignment level, so that "
            "data.level_weights and data.level_curriculum mean nothing: leave them out"
        )
    if data.level_curriculum == "none":
        return None
    return Curriculum(
        kind=data.level_curriculum,
        levels=dataset.levels,
        num_levels=config.model.num_levels,
        epochs=config.epochs,
    )


class _Copies:
    """How often each sample is wanted in an epoch, looked up for some at a time.

    Raises:
        ConfigError: if there is not one weight for each folder.
    """

    def __init__(self, dataset: TrainDataset, held_out: np.ndarray, data: DataConfig) -> None:
        if data.weights and len(data.weights) != len(dataset.folders):
            raise ConfigError(
                f"data.weights must have one number for each of the {len(dataset.folders)} data "
                f"folders, got {len(data.weights)}"
            )
        self._dataset, self._held_out = dataset, held_out
        self._of_levels = np.array([1.0, *data.level_weights])
        self._of_folders = np.array(data.weights)

    def __getitem__(self, samples: np.ndarray) -> np.ndarray:
        often = np.ones(len(samples))
        if len(self._of_levels) > 1:
            often = self._of_levels[self._dataset.levels[samples]]
        if len(self._of_folders):
            often = often * self._of_folders[self._dataset.folder_of(samples)]
        return np.where(self._held_out[samples], 0.0, often)


class _AskedToStop(Exception):
    """SIGTERM came while samples were tokenised."""


def _lengths(dataset: TrainDataset, encoder: Encoder, is_first: bool) -> MeasuredLengths:
    """Returns the lengths; the first process measures them, the others then read them.

    Where they cannot, because a host has a copy of the data or must not write to it, the first
    process of that host measures them, too.

    Raises:
        ConfigError, DatasetError: in all processes, if the samples are not to be trained on.
        SystemExit: in all processes, if one was asked to stop.
    """
    is_of_host = os.environ["LOCAL_RANK"] == "0"
    progress = show_progress("tokenising", is_active=is_first)
    handler = signal.getsignal(signal.SIGTERM)

    def until_asked(numbers: Iterable[int], total: int) -> Iterator[int]:
        for number in progress(numbers, total):
            if isinstance(handler, EarlySigterm) and handler.was_asked:
                raise _AskedToStop
            yield number

    # The others of a host would each measure all over again where it has the data to itself.
    measured = None
    for is_due in (is_first, is_of_host and not is_first):
        failure = None
        try:
            measured = measure_lengths(dataset, encoder, until_asked) if is_due else measured
        except (ConfigError, DatasetError, StorageError, _AskedToStop) as error:
            failure = error
        failures: list[Exception | None] = [None] * dist.get_world_size()
        dist.all_gather_object(failures, failure)
        end_together(handler)
        for found in failures:
            if found is not None:
                raise found
    return measured or measure_lengths(dataset, encoder, progress)


@dataclass(frozen=True, slots=True, kw_only=True)
class _HeldOut:
    """What a run is validated on."""

    dataset: TrainDataset
    samples: list[int]
    order: list[Rows]
    """This process's share of all of them, packed."""
    pictures_from: dict[int, int]
    """Whose pictures a sample gets in the control; those without pictures are not in it."""
    control_order: list[Rows]
    """This process's share of the samples in `pictures_from`."""
    told_order: list[Rows]
    """This process's share of the first of those with pictures."""


def _held_out(
    config: TrainConfig,
    encoder: Encoder,
    dataset: TrainDataset,
    lengths: SampleLengths,
    held_out: np.ndarray,
    is_first: bool,
) -> _HeldOut:
    is_present = held_out & (lengths.tokens > 0)
    if config.data.validation_data:
        kept = dataset.kept
        dataset = together(lambda: TrainDataset(config.data.validation_data, kept))
        dataset.check_levels(config.model.num_levels, are_told=config.tells_levels)
        lengths = _lengths(dataset, encoder, is_first)
        is_present = lengths.tokens > 0
    chosen = list(islice(dataset.first_by_key(is_present), config.data.validation_samples))
    pictures_from = exchanged_samples(dataset, chosen)
    pictured = [sample for sample in chosen if dataset[sample].num_images]
    window = min(VALIDATION_WINDOW, config.data.packing_window)
    tokens = config.data.tokens_per_sequence
    return _HeldOut(
        dataset=dataset,
        samples=chosen,
        order=validation_order(chosen, lengths, tokens, window) if chosen else [],
        pictures_from=pictures_from,
        control_order=validation_order(list(pictures_from), lengths, tokens, window),
        told_order=validation_order(pictured[: config.told_samples], lengths, tokens, window),
    )


def _filled_store(
    parts: Assembled,
    config: TrainConfig,
    out: Path,
    dataset: TrainDataset,
    plan: TrainingPlan,
    first: Sequence[int],
    validation: _HeldOut,
) -> FeatureStore | None:
    """Returns the features of all pictures that are seen; None where every step computes them.

    Args:
        first: samples that the projector's start is computed from.
    """
    if config.data.vision_features != "store":
        return None
    planned = {s for step in plan.steps_from(0) for row in step.sequences for s in row}
    seen = sorted({*planned, *first})
    store = open_store(parts, config.data, out)
    wanted = [(dataset, seen), (validation.dataset, validation.samples)]
    fill_store(store, parts, config.data, wanted)
    return store


def _validation_rows(
    parts: Assembled,
    config: TrainConfig,
    held: _HeldOut,
    encoder: Encoder,
    store: FeatureStore | None,
) -> Validation:
    def rows(pictures_from: dict[int, int] | None = None) -> PackedRows:
        return parts.rows(held.dataset, encoder, config.data.on_corrupt, store, pictures_from)

    return Validation(
        rows=rows(),
        order=held.order,
        control_rows=rows(held.pictures_from),
        control_order=held.control_order,
        told_order=held.told_order,
    )


def _plan_fingerprint(config: TrainConfig, dataset: TrainDataset, encoder: Encoder) -> str:
    made_of = [encoder.identity(), *dataset.fingerprints, str(config.seed), str(config.epochs)]
    made_of += [str(config.max_steps), str(config.data.sequences_per_step)]
    made_of += [str(config.data.weights), str(config.data.validation_ratio)]
    made_of += [str(config.data.packing_window)]
    if config.data.level_weights or config.data.level_curriculum != "none":
        made_of += [str(config.data.level_weights), config.data.level_curriculum]
    return hashlib.blake2b("\n".join(made_of).encode(), digest_size=16).hexdigest()


def _plan_identity(config: TrainConfig, dataset: TrainDataset, encoder: Encoder) -> str:
    """Returns a hash of all that the plan of an epoch may follow from, beside seed and epoch."""
    made_of = [*dataset.fingerprints, encoder.identity(), config.model.num_levels, config.epochs]
    data = replace(config.data, workers=0, rows_folder="", on_corrupt="error")
    return digest_of(*made_of, replace(data, sequences_per_device=1))


def _check_checkpoint(checkpoint: Path | None, fingerprint: str, folder: RunFolder) -> int:
    """Returns the step to go on with, 0 without a checkpoint."""
    if checkpoint is None:
        return 0
    state = read_state(checkpoint)
    if state.plan_fingerprint != fingerprint:
        raise ConfigError(
            f"{checkpoint} was made from other data, or with another tokenizer: its steps mean "
            "something else now. Choose another --out"
        )
    if state.init and state.init != folder.init_files():
        raise ConfigError(
            f"{folder.init} has changed since {checkpoint} was made: what learns is in the "
            "checkpoint, the rest of the model would be another. Choose another --out"
        )
    return state.step


def _show(
    model: nn.Module,
    dataset: TrainDataset,
    lengths: MeasuredLengths,
    held_out: np.ndarray,
    plan: TrainingPlan,
    config: TrainConfig,
) -> None:
    """Shows what learns, from what, and for how long."""
    table = Table("part", "parameters", "learning", title="model")
    for part in trainable_table(model):
        table.add_row(part.name, f"{part.num_weights:,}", f"{part.num_trainable:,}")
    console = Console(stderr=True)
    console.print(table)
    console.print(
        f"{len(dataset):,} samples, {int(held_out.sum()):,} held out, {lengths.losses}; "
        f"{int(lengths.tokens.sum()):,} tokens, {int(lengths.targets.sum()):,} to learn; "
        f"{plan.num_steps:,} steps of {config.data.sequences_per_step} x "
        f"{config.data.tokens_per_sequence} tokens"
    )
