"""The loss of a model folder on a dataset, in this process."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from schemas.errors import ConfigError
from schemas.progress import show_progress
from training.config import Control, DataConfig, ParallelConfig, Precision, SampleForm
from training.data.dataset import TrainDataset
from training.data.lengths import measure_lengths
from training.data.loader import PackedRows, Rows
from training.engine.deepspeed import start_distributed
from training.engine.precision import dtype_of
from training.evaluation.control import (
    Difference,
    compared,
    exchanged_samples,
    sample_results,
)
from training.evaluation.levels import LevelsFound, found_levels, vectors_of
from training.evaluation.validation import VALIDATION_WINDOW, validation_loss, validation_order
from training.metrics.totals import Totals
from training.model.packing.check import packing_fault
from training.parts import Assembled, load_folder


def dataset_loss(
    model_folder: str,
    data: Sequence[str],
    *,
    form: SampleForm,
    tokens_per_sequence: int,
    samples: int,
    precision: Precision = "auto",
    control: Control = "none",
    told_levels: Sequence[int] = (),
) -> tuple[Totals, Difference | None, LevelsFound | None]:
    """Returns the loss of a model on datasets, over all and by level, the control, and its levels.

    Args:
        samples: reads the first so many by the order of their keys; 0 reads all.
        precision: of the model; auto is what this machine is fast in.
        control: `exchanged` to read those with pictures once more with other samples' pictures.
        told_levels: the levels that it is told in turn; none leaves its levels out.

    Raises:
        ConfigError: if there is a control to make, but no two different pictures, or if the model
            has no such level, or no sample a picture.
    """
    start_distributed()
    has_gpu = torch.cuda.is_available()
    parts: Assembled = load_folder(model_folder, dtype_of(ParallelConfig(precision=precision)))
    check_told_levels(parts.model.config, told_levels)
    config = replace(DataConfig(), form=form, tokens_per_sequence=tokens_per_sequence)
    dataset = TrainDataset(data)
    are_told = form == "caption" and parts.model.config.has_align_token
    dataset.check_levels(parts.model.config.num_levels, are_told=are_told)
    encoder = parts.encoder(config)
    lengths = measure_lengths(dataset, encoder, show_progress("tokenising", is_active=True))
    chosen = dataset.by_key[: samples or None].tolist()
    window = VALIDATION_WINDOW if packing_fault(parts.model.config.text_config) is None else 1
    order = validation_order(chosen, lengths, tokens_per_sequence, window)
    model: Any = parts.model
    model.to("cuda" if has_gpu else "cpu")
    rows, levels = parts.rows(dataset, encoder), parts.model.config.num_levels
    totals = validation_loss(model, rows, order, levels)
    found = None
    if told_levels:
        pictured = [s for s in chosen if lengths.tokens[s] > 0 and dataset[s].num_images]
        told_order = validation_order(pictured, lengths, tokens_per_sequence, window)
        found = _found(model, rows, told_order, told_levels, form)
    if control == "none":
        return totals, None, found
    pictures_from = exchanged_samples(dataset, [s for s in chosen if lengths.tokens[s] > 0])
    if not pictures_from:
        raise ConfigError(
            f"{', '.join(data)}: no two samples have different pictures and captions, so there are "
            "none to exchange: leave --control out, or read more samples"
        )
    with_picture = validation_order(list(pictures_from), lengths, tokens_per_sequence, window)
    others = parts.rows(dataset, encoder, pictures_from=pictures_from)
    right = sample_results(model, rows, with_picture, levels)
    other = sample_results(model, others, with_picture, levels)
    return totals, compared(right, other), found


def check_told_levels(config: Any, levels: Sequence[int]) -> None:
    """Raises `ConfigError` if a model cannot be told one of these levels."""
    if levels and not config.has_align_token:
        raise ConfigError("--told-level: this model has alignment_mode none, and no levels")
    wrong = [level for level in levels if not 1 <= level <= config.num_levels]
    if wrong:
        raise ConfigError(
            f"--told-level {wrong[0]}: this model has the levels 1 to {config.num_levels}"
        )


def _found(
    model: Any, rows: PackedRows, order: Sequence[Rows], levels: Sequence[int], form: SampleForm
) -> LevelsFound:
    """Returns what a model makes of samples with pictures that it is told these levels of.

    Raises:
        ConfigError: if there are none.
    """
    if not order:
        raise ConfigError("--told-level: no sample has a picture to tell a level of")
    return found_levels(
        model,
        rows,
        order,
        vectors_of(model.level_vectors.weight),
        align_token_id=model.config.align_token_id,
        form=form,
        levels=levels,
    )
