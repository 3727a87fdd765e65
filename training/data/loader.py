"""Batches in the order of the plan, decoded ahead by worker processes."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from schemas.errors import DatasetError
from training.config import DataConfig, OnCorrupt
from training.data.collate import Batch, EncodedSample, collate
from training.data.dataset import CorruptImage, RawSample, TrainDataset, open_images
from training.data.features import FeatureStore
from training.data.lengths import Encoder, SampleLengths
from training.data.mapped import MappedFolders, digest_of
from training.data.packing import Packed
from training.data.plan import Curriculum, EpochPlan, PlanSettings, Wanted, plan_epoch

PLAN_VERSION = 1
"""Raised when plans are kept differently from before."""

logger = logging.getLogger(__name__)

Rows = tuple[Packed, ...]
"""The packed sequences of one forward pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStep:
    """One optimizer step, over all processes."""

    number: int
    """From 0, over all epochs."""
    epoch: int
    sequences: tuple[Packed, ...]
    num_targets: int
    """Tokens that the step learns, over all processes: the loss is their mean."""

    def share(self, process: int, processes: int, per_device: int) -> list[Rows]:
        """Returns the forward passes of one of `processes`, which share the step out evenly."""
        return [
            self.sequences[start : start + per_device]
            for start in range(process * per_device, len(self.sequences), processes * per_device)
        ]


class TrainingPlan:
    """The steps of a whole run, epoch after epoch.

    Args:
        by_key: (samples,) numbers of the samples in the order of their keys.
        copies: how often each sample is wanted in an epoch.
        kept: where plans are kept; by default in temporary folders.
        identity: there, of all that decides the plans but for the seed and the epoch.
    """

    def __init__(
        self,
        by_key: np.ndarray,
        lengths: SampleLengths,
        copies: Wanted,
        config: DataConfig,
        *,
        seed: int,
        epochs: int,
        max_steps: int = 0,
        curriculum: Curriculum | None = None,
        kept: MappedFolders | None = None,
        identity: str = "",
    ) -> None:
        self._by_key, self._lengths, self._copies = by_key, lengths, copies
        self._config, self._seed, self._curriculum = config, seed, curriculum
        self._kept, self._identity = kept, identity
        self._cached: tuple[int, EpochPlan] | None = None
        self.steps_of_epochs: list[int] = []
        """Number of steps in each epoch; epochs differ by the luck of the packing."""
        total = 0
        for epoch in range(epochs):
            if max_steps and total >= max_steps:
                break
            self.steps_of_epochs.append(len(self._epoch(epoch)))
            total += self.steps_of_epochs[-1]
        self.num_steps = min(total, max_steps) if max_steps else total
        """Number of optimizer steps in the run."""

    def steps_from(self, first: int) -> Iterator[PlannedStep]:
        """Yields the steps of the run from number `first` on."""
        number = 0
        for epoch, count in enumerate(self.steps_of_epochs):
            for position in range(max(0, first - number), count):
                if number + position >= self.num_steps:
                    return
                sequences = self._epoch(epoch)[position]
                samples = [sample for packed in sequences for sample in packed]
                yield PlannedStep(
                    number=number + position,
                    epoch=epoch,
                    sequences=sequences,
                    num_targets=int(self._lengths.targets[samples].sum()),
                )
            number += count

    def _epoch(self, epoch: int) -> EpochPlan:
        if self._cached is None or self._cached[0] != epoch:
            settings = PlanSettings(
                seed=self._seed,
                epoch=epoch,
                tokens_per_sequence=self._config.tokens_per_sequence,
                sequences_per_step=self._config.sequences_per_step,
                packing_window=self._config.packing_window,
            )
            plan = plan_epoch(
                self._by_key,
                self._lengths.tokens,
                settings,
                copies=self._copies,
                curriculum=self._curriculum,
                kept=self._kept,
                name=f"epoch-{digest_of(PLAN_VERSION, self._identity, settings)}",
            )
            self._cached = (epoch, plan)
        return self._cached[1]


class PackedRows(Dataset[Batch]):
    """Gives the batch of any rows of the plan: reads, decodes, tokenises, collates.

    Args:
        features: holds what the tower gives for the pictures, so that none is decoded.
        pictures_from: for some samples, the sample whose pictures they get in place of their own.
    """

    def __init__(
        self,
        dataset: TrainDataset,
        encoder: Encoder,
        preprocess: Callable[[Image.Image], Tensor],
        *,
        image_size: tuple[int, int],
        passes_levels: bool,
        on_corrupt: OnCorrupt = "error",
        width: int = 0,
        features: FeatureStore | None = None,
        pictures_from: Mapping[int, int] | None = None,
    ) -> None:
        self._features, self._pictures_from = features, pictures_from or {}
        self._dataset, self._encoder, self._preprocess = dataset, encoder, preprocess
        self._image_size, self._passes_levels = image_size, passes_levels
        self._on_corrupt, self._width = on_corrupt, width

    def __getitem__(self, rows: Rows) -> Batch:
        """Returns the batch of these rows.

        Raises:
            DatasetError: if a sample cannot be read; the message names it.
        """
        kept: list[list[EncodedSample]] = []
        num_skipped = 0
        for row in rows:
            kept.append([])
            for sample in row:
                try:
                    kept[-1].append(self.encoded(sample))
                except CorruptImage as error:
                    if self._on_corrupt == "error":
                        raise
                    num_skipped += 1
                    logger.warning("skipped: %s", error)
        return collate(
            kept,
            padding_id=0,
            image_size=self._image_size,
            passes_levels=self._passes_levels,
            width=self._width,
            num_skipped=num_skipped,
        )

    def encoded(self, index: int) -> EncodedSample:
        """Returns a sample ready to be packed.

        Raises:
            DatasetError: if it cannot be read; the message names it.
        """
        sample = self._dataset[index]
        tokens = self._encoder.encode(sample)
        assert tokens is not None, "the plan leaves out what has nothing to learn"
        if self._passes_levels and sample.num_images and sample.alignment_level is None:
            raise DatasetError(
                f"sample {sample.name} has no alignment level: this stage learns the level "
                "vectors, so its data must be curated with the level stage, or "
                "model.alignment_mode must be none"
            )
        pixels, features = self._pictures(self._dataset[self._pictures_from.get(index, index)])
        return EncodedSample(
            key=sample.key,
            tokens=tokens,
            pixel_values=pixels,
            vision_features=features,
            alignment_level=sample.alignment_level,
        )

    def _pictures(self, sample: RawSample) -> tuple[Tensor | None, Tensor | None]:
        """Returns a sample's pictures as pixels (I, 3, H, W), or what is stored of them."""
        if not sample.num_images:
            return None, None
        if self._features is not None:
            return None, torch.stack([self._features[name] for name in sample.image_hashes])
        return torch.stack([self._preprocess(image) for image in open_images(sample)]), None


class _BatchOrError(Dataset[Batch | DatasetError]):
    """Gives a batch, or why there is none.

    What a worker process raises arrives as another exception, its message a traceback; what it
    returns arrives as it is.
    """

    def __init__(self, rows: PackedRows) -> None:
        self._rows = rows

    def __getitem__(self, rows: Rows) -> Batch | DatasetError:
        try:
            return self._rows[rows]
        except DatasetError as error:
            return error


def load_batches(
    rows: PackedRows, order: Iterable[Rows], *, workers: int, pin_memory: bool
) -> Generator[Batch, None, None]:
    """Yields the batches of `order`, in this order, whatever the number of workers.

    The workers end with the last batch, or when the generator is closed.

    Raises:
        DatasetError: if a sample cannot be read; the message names it.
    """
    loader = DataLoader(
        _BatchOrError(rows),
        sampler=order,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=pin_memory,
        worker_init_fn=_hear_sigterm_of_parent_only,
        # Of its own: it would draw from the numbers of the step at which a run begins.
        generator=torch.Generator(),
    )
    for batch in loader:
        if isinstance(batch, DatasetError):
            raise batch
        yield batch


def _hear_sigterm_of_parent_only(worker: int) -> None:
    """Lets a worker live when the whole process group is asked to stop.

    The main process then finishes its step and saves. Where it ends without ending its workers
    first, Python sends them SIGTERM from there and waits for them: that one they obey.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR1])
    threading.Thread(target=_end_by_parent, daemon=True).start()


def _end_by_parent() -> None:
    """Ends this process as soon as its parent sends SIGTERM."""
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != os.getppid():
        pass
    os._exit(0)
