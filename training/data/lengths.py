"""How long every sample is: tokenised once for a tokenizer, then kept beside the shards.

The file's name is a hash of all that decides it: the shards, the tokenizer, its chat template,
the form of the samples, the tokens of an image and the length of a sequence.
"""

import hashlib
import io
import json
import logging
import uuid
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs

from training.config import SampleForm
from training.data.conversations import tokenise
from training.data.dataset import RawSample, TrainDataset
from training.model.inputs import IGNORE_INDEX, Placeholders, SampleTokens, lay_out

LENGTHS_VERSION = 2
"""Raised when samples are laid out differently from before."""

Progress = Callable[[Iterable[int], int], Iterable[int]]
"""Passes numbers on and shows how many of the total went by."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """What turns a sample of the dataset into tokens; travels to the worker processes."""

    tokenizer: Any
    """A fast tokenizer of transformers, `<image>` and `<align>` among its words."""
    placeholders: Placeholders
    form: SampleForm
    tokens_per_sequence: int

    def encode(self, sample: RawSample) -> SampleTokens | None:
        """Returns a sample's tokens, cut to a sequence; None if that cuts all targets away.

        Raises:
            DatasetError: if the sample cannot be tokenised; the message names it.
        """
        words = tokenise(sample, self.form, self.tokenizer)
        whole = lay_out(words.token_ids, words.is_target, self.placeholders)
        # A sample's first token has nothing before it to say it from: in a packed row that
        # would be the sample before.
        labels = [IGNORE_INDEX, *whole.labels[1 : self.tokens_per_sequence]]
        input_ids = whole.input_ids[: self.tokens_per_sequence]
        image = self.placeholders.image_token_id
        if input_ids.count(image) < whole.input_ids.count(image):
            return None
        if all(label == IGNORE_INDEX for label in labels):
            return None
        return SampleTokens(
            input_ids=input_ids,
            labels=labels,
            prompt_mask=whole.prompt_mask[: self.tokens_per_sequence],
        )

    def identity(self) -> str:
        """Returns a hash that changes with whatever can change the tokens of a sample."""
        made_of = {
            "version": LENGTHS_VERSION,
            "tokenizer": self.tokenizer.backend_tokenizer.to_str(),
            "chat_template": self.tokenizer.chat_template,
            "placeholders": asdict(self.placeholders),
            "form": self.form,
            "tokens_per_sequence": self.tokens_per_sequence,
        }
        text = json.dumps(made_of, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleLengths:
    """Of each sample of a dataset, as arrays of (samples,)."""

    tokens: np.ndarray
    """Tokens laid out and cut; 0 where nothing to learn is left."""
    targets: np.ndarray
    """Tokens that are learnt."""

    def __post_init__(self) -> None:
        assert len(self.tokens) == len(self.targets)


def measure_lengths(
    dataset: TrainDataset, encoder: Encoder, cache_folder: str | None, progress: Progress
) -> SampleLengths:
    """Returns the lengths of all samples, from the files beside the shards where they stand.

    Args:
        cache_folder: where to keep them instead of `_lengths` in each dataset's folder.
    """
    identity = encoder.identity()
    parts = []
    for number, folder in enumerate(dataset.folders):
        rows = np.flatnonzero(dataset.dataset_index == number)
        name = hashlib.blake2b(
            (identity + dataset.fingerprints[number]).encode(), digest_size=16
        ).hexdigest()
        path = f"{cache_folder or folder.rstrip('/') + '/_lengths'}/{name}.parquet"
        part = _read(path)
        if part is None or len(part) != len(rows):
            part = _measure(dataset, rows, encoder, progress)
            _write(part, path)
        parts.append(part)
    table = pa.concat_tables(parts)
    return SampleLengths(
        tokens=table.column("tokens").to_numpy(), targets=table.column("targets").to_numpy()
    )


def _measure(
    dataset: TrainDataset, rows: np.ndarray, encoder: Encoder, progress: Progress
) -> pa.Table:
    tokens = np.zeros(len(rows), dtype=np.int32)
    targets = np.zeros(len(rows), dtype=np.int32)
    for i in progress(range(len(rows)), len(rows)):
        encoded = encoder.encode(dataset[int(rows[i])])
        if encoded is not None:
            tokens[i] = len(encoded.input_ids)
            targets[i] = sum(label != IGNORE_INDEX for label in encoded.labels)
    return pa.table({"tokens": tokens, "targets": targets})


def _read(path: str) -> pa.Table | None:
    filesystem, name = url_to_fs(path)
    if not filesystem.exists(name):
        return None
    with filesystem.open(name, "rb") as file:
        return pq.read_table(file)


def _write(table: pa.Table, path: str) -> None:
    """Writes the file whole or not at all; a folder that cannot be written to is no error."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    filesystem, name = url_to_fs(path)
    try:
        if "://" in path:
            filesystem.pipe_file(name, buffer.getvalue())
            return
        filesystem.makedirs(name.rsplit("/", 1)[0], exist_ok=True)
        aside = f"{name}.{uuid.uuid4().hex}.tmp"
        with filesystem.open(aside, "wb") as file:
            file.write(buffer.getvalue())
        Path(aside).replace(name)
    except OSError as error:
        logger.warning("the lengths of the samples are not kept: %s", error)
