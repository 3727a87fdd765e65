"""The loss of a model folder on a dataset, in this process."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from schemas.progress import show_progress
from training.config import DataConfig, ParallelConfig, Precision, SampleForm
from training.data.dataset import TrainDataset
from training.data.lengths import measure_lengths
from training.engine.deepspeed import start_distributed
from training.engine.precision import dtype_of
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
) -> Totals:
    """Returns the loss of a model on datasets, over all and by alignment level.

    Args:
        samples: reads the first so many by the order of their keys; 0 reads all.
        precision: of the model; auto is what this machine is fast in.
    """
    start_distributed()
    has_gpu = torch.cuda.is_available()
    parts: Assembled = load_folder(model_folder, dtype_of(ParallelConfig(precision=precision)))
    config = replace(DataConfig(), form=form, tokens_per_sequence=tokens_per_sequence)
    dataset = TrainDataset(data)
    dataset.check_levels(parts.model.config.num_levels)
    encoder = parts.encoder(config)
    lengths = measure_lengths(dataset, encoder, show_progress("tokenising", is_active=True))
    by_key = sorted(range(len(dataset)), key=lambda sample: dataset.keys[sample])
    chosen = by_key[:samples] if samples else by_key
    window = VALIDATION_WINDOW if packing_fault(parts.model.config.text_config) is None else 1
    order = validation_order(chosen, lengths, tokens_per_sequence, window)
    model: Any = parts.model
    model.to("cuda" if has_gpu else "cpu")
    return validation_loss(
        model, parts.rows(dataset, encoder), order, parts.model.config.num_levels
    )
