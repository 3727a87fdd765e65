"""How long every sample is: tokenised once for a tokenizer, then kept beside the shards.

A sample that is longer than a sequence is cut; it is left out if that takes a picture or all
targets away. Both are counted.

The file's name is a hash of all that decides it: the shards, the tokenizer, its chat template,
the form of the samples, the tokens of an image and the length of a sequence.
"""

import hashlib
import io
import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.errors import ConfigError, DatasetError, StorageError
from schemas.storage import commit_file, exists, read_bytes
from training.config import OnCorrupt, SampleForm
from training.data.conversations import Words, tokenise
from training.data.dataset import RawSample, TrainDataset
from training.model.inputs import IGNORE_INDEX, Placeholders, SampleTokens, lay_out

LENGTHS_VERSION = 4
"""Raised when samples are laid out differently from before."""

Progress = Callable[[Iterable[int], int], Iterable[int]]
"""Passes numbers on and shows how many of the total went by."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleLength:
    """How long a sample is, whole and cut."""

    tokens: int
    """Tokens laid out and cut; 0 where the sample is left out."""
    targets: int
    """Tokens of these that are learnt."""
    whole_tokens: int
    whole_targets: int
    is_picture_cut: bool
    """Whether a picture lies behind the end of a sequence, or over it."""
    dropped_turns: int
    """Turns that are not learnt from: 1 where a conversation opens with an answer."""
    has_special_words: bool
    """Whether someone's words held a special token, which is written apart."""
    is_bad: bool = False
    """Whether it is left out because the model's template or tokenizer cannot write it."""


MOST_NAMED = 3
"""Samples left out that are named one by one; all are counted."""
NOTHING = SampleLength(
    tokens=0,
    targets=0,
    whole_tokens=0,
    whole_targets=0,
    is_picture_cut=False,
    dropped_turns=0,
    has_special_words=False,
)
"""Of a sample that is not written at all."""

COLUMNS: dict[str, type[np.generic]] = {
    field.name: np.bool_ if field.type is bool else np.int32 for field in fields(SampleLength)
}
"""Of the files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """What turns a sample of the dataset into tokens; travels to the worker processes."""

    tokenizer: Any
    """A fast tokenizer of transformers, `<image>` and `<align>` among its words."""
    placeholders: Placeholders
    form: SampleForm
    tokens_per_sequence: int
    on_bad_sample: OnCorrupt = "error"
    """What `measure_lengths` makes of a sample that cannot be tokenised."""

    def encode(self, sample: RawSample) -> SampleTokens | None:
        """Returns a sample's tokens, cut to a sequence; None if it is to be left out.

        Raises:
            DatasetError: if the sample cannot be tokenised; the message names it.
        """
        return self._cut(self._whole(self._tokenise(sample)))

    def measure(self, sample: RawSample) -> SampleLength:
        """Returns how long a sample is, whole and cut.

        Raises:
            DatasetError: if the sample cannot be tokenised; the message names it.
        """
        words = self._tokenise(sample)
        whole = self._whole(words)
        kept = self._cut(whole)
        return SampleLength(
            tokens=0 if kept is None else len(kept.input_ids),
            targets=0 if kept is None else _num_targets(kept),
            whole_tokens=len(whole.input_ids),
            whole_targets=_num_targets(whole),
            is_picture_cut=self._is_picture_cut(whole),
            dropped_turns=words.num_dropped_turns,
            has_special_words=words.has_special_words,
        )

    def _tokenise(self, sample: RawSample) -> Words:
        try:
            by_piece = self.placeholders.tokenizes_by_piece
            return tokenise(sample, self.form, self.tokenizer, by_piece=by_piece)
        except DatasetError as error:
            raise DatasetError(f"{error}; it lies in {sample.tar}") from error

    def _whole(self, words: Words) -> SampleTokens:
        whole = lay_out(words.token_ids, words.is_target, self.placeholders)
        # A sample's first token has nothing before it to say it from: in a packed row that
        # would be the sample before.
        return replace(whole, labels=[IGNORE_INDEX, *whole.labels[1:]])

    def _cut(self, whole: SampleTokens) -> SampleTokens | None:
        end = self.tokens_per_sequence
        kept = SampleTokens(
            input_ids=whole.input_ids[:end],
            labels=whole.labels[:end],
            prompt_mask=whole.prompt_mask[:end],
        )
        return kept if _num_targets(kept) and not self._is_picture_cut(whole) else None

    def _is_picture_cut(self, whole: SampleTokens) -> bool:
        return self.placeholders.image_token_id in whole.input_ids[self.tokens_per_sequence :]

    def identity(self) -> str:
        """Returns a hash that changes with whatever can change the tokens of a sample."""
        made_of = {
            "version": LENGTHS_VERSION,
            "tokenizer": self.tokenizer.backend_tokenizer.to_str(),
            "chat_template": self.tokenizer.chat_template,
            "placeholders": asdict(self.placeholders),
            "form": self.form,
            "tokens_per_sequence": self.tokens_per_sequence,
            "on_bad_sample": self.on_bad_sample,
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


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredLengths(SampleLengths):
    """The lengths with what was taken away to come to them."""

    whole_tokens: np.ndarray
    whole_targets: np.ndarray
    is_picture_cut: np.ndarray
    dropped_turns: np.ndarray
    has_special_words: np.ndarray
    is_bad: np.ndarray

    @property
    def losses(self) -> str:
        """What was left out and cut, in words."""
        is_out = self.tokens == 0
        is_cut = ~is_out & (self.tokens < self.whole_tokens)
        lost = int((self.whole_targets - self.targets)[is_cut].sum())
        is_late = is_out & ~self.is_picture_cut & (self.whole_targets > 0)
        said = [
            f"{int(is_late.sum()):,} longer than a sequence before their first target and left out",
            f"{int(is_cut.sum()):,} cut to a sequence and {lost:,} targets lost with it",
        ]
        seldom = {
            "with a picture behind the end of a sequence and left out": self.is_picture_cut,
            "with nothing behind their first token to learn and left out": (
                (self.whole_targets == 0) & ~self.is_bad
            ),
            "that the model's template or tokenizer cannot write and left out": self.is_bad,
            "without the answer that they open with": self.dropped_turns > 0,
            "with special tokens in someone's words, written apart": self.has_special_words,
        }
        said += [f"{int(which.sum()):,} {what}" for what, which in seldom.items() if which.any()]
        return ", ".join(said)


def measure_lengths(dataset: TrainDataset, encoder: Encoder, progress: Progress) -> MeasuredLengths:
    """Returns the lengths of all samples, from the files beside the shards where they stand.

    Raises:
        ConfigError: if none fits into a sequence.
        DatasetError: if one cannot be tokenised; the message names it.
    """
    identity = encoder.identity()
    parts = []
    for number, folder in enumerate(dataset.folders):
        rows = np.flatnonzero(dataset.dataset_index == number)
        name = hashlib.blake2b(
            (identity + dataset.fingerprints[number]).encode(), digest_size=16
        ).hexdigest()
        path = f"{folder.rstrip('/')}/_lengths/{name}.parquet"
        part = _read(path)
        if part is None or len(part) != len(rows):
            part = _measure(dataset, rows, encoder, progress)
            _write(part, path)
        parts.append(part)
    table = pa.concat_tables(parts)
    lengths = MeasuredLengths(**{name: table.column(name).to_numpy() for name in COLUMNS})
    _check_any(dataset, lengths, encoder.tokens_per_sequence)
    return lengths


def _check_any(dataset: TrainDataset, lengths: MeasuredLengths, tokens_per_sequence: int) -> None:
    """Raises ConfigError if all samples are left out."""
    if lengths.tokens.any():
        return
    if lengths.is_bad.all():
        raise ConfigError(
            f"{', '.join(dataset.folders)}: the model's chat template can write none of the "
            f"{len(dataset):,} conversations: take another, as --model.chat-template vicuna_v1; "
            "without --data.on-bad-sample skip the run says what is wrong with the first"
        )
    shortest, longest = int(lengths.whole_tokens.min()), int(lengths.whole_tokens.max())
    raise ConfigError(
        f"{', '.join(dataset.folders)}: none of the {len(dataset):,} samples fits into a sequence "
        f"of data.tokens_per_sequence {tokens_per_sequence}: {lengths.losses}. The shortest has "
        f"{shortest} tokens, the longest {longest}: set --data.tokens-per-sequence to {shortest} "
        f"at least; {longest} cuts none"
    )


def _num_targets(tokens: SampleTokens) -> int:
    return len(tokens.labels) - tokens.labels.count(IGNORE_INDEX)


def _measure(
    dataset: TrainDataset, rows: np.ndarray, encoder: Encoder, progress: Progress
) -> pa.Table:
    columns: dict[str, np.ndarray] = {
        name: np.zeros(len(rows), dtype=dtype) for name, dtype in COLUMNS.items()
    }
    bad = 0
    for i in progress(range(len(rows)), len(rows)):
        try:
            length = encoder.measure(dataset[int(rows[i])])
        except DatasetError as error:
            if encoder.on_bad_sample == "error":
                raise DatasetError(
                    f"{error}. --data.on-bad-sample skip trains without such samples"
                ) from error
            length, bad = replace(NOTHING, is_bad=True), bad + 1
            if bad <= MOST_NAMED:
                logger.warning("left out: %s", error)
        for name, value in asdict(length).items():
            columns[name][i] = value
    return pa.table(columns)


def _read(path: str) -> pa.Table | None:
    return pq.read_table(io.BytesIO(read_bytes(path))) if exists(path) else None


def _write(table: pa.Table, path: str) -> None:
    """Writes the file whole or not at all; a folder that cannot be written to is no error."""
    try:
        with commit_file(path) as file:
            pq.write_table(table, file, compression="zstd")
    except (OSError, StorageError) as error:
        logger.warning("the lengths of the samples are not kept: %s", error)
