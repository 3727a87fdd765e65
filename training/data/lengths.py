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
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.errors import ConfigError, DatasetError, StorageError
from schemas.storage import commit_file, exists, is_local, local_path, read_bytes
from training.config import OnCorrupt, SampleForm
from training.data.conversations import Words, tokenise
from training.data.dataset import RawSample, TrainDataset
from training.data.length_counts import LengthCounts
from training.data.mapped import PIECE, digest_of, map_array
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
TOKENS, TARGETS, COUNTS = "tokens", "targets", "counts.json"
"""Of what is mapped."""


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

    counts: LengthCounts

    @property
    def losses(self) -> str:
        """What was left out and cut, in words."""
        return str(self.counts)


def measure_lengths(dataset: TrainDataset, encoder: Encoder, progress: Progress) -> MeasuredLengths:
    """Returns the lengths of all samples, from the files beside the shards where they stand.

    Raises:
        ConfigError: if none fits into a sequence.
        DatasetError: if one cannot be tokenised; the message names it.
        StorageError: if the disk takes no more.
    """
    identity = encoder.identity()

    def write(folder: Path) -> None:
        counts = LengthCounts()
        with (folder / TOKENS).open("wb") as tokens, (folder / TARGETS).open("wb") as targets:
            for number in range(len(dataset.folders)):
                for part in _parts(dataset, number, encoder, progress):
                    values = {name: part.column(name).to_numpy() for name in COLUMNS}
                    counts = counts.with_part(**values)
                    tokens.write(np.ascontiguousarray(values["tokens"]).data)
                    targets.write(np.ascontiguousarray(values["targets"]).data)
        (folder / COUNTS).write_text(json.dumps(asdict(counts)))

    def read(folder: Path) -> MeasuredLengths:
        return MeasuredLengths(
            tokens=map_array(folder / TOKENS, np.int32),
            targets=map_array(folder / TARGETS, np.int32),
            counts=LengthCounts(**json.loads((folder / COUNTS).read_text())),
        )

    lengths = dataset.kept.opened(
        f"lengths-{digest_of(identity, *dataset.fingerprints)}",
        write,
        read,
        rows=len(dataset),
        num_bytes=8 * len(dataset),
    )
    _check_any(dataset, lengths, encoder.tokens_per_sequence)
    return lengths


def _check_any(dataset: TrainDataset, lengths: MeasuredLengths, tokens_per_sequence: int) -> None:
    """Raises ConfigError if all samples are left out."""
    counts = lengths.counts
    if counts.kept:
        return
    if counts.bad == len(dataset):
        raise ConfigError(
            f"{', '.join(dataset.folders)}: the model's chat template can write none of the "
            f"{len(dataset):,} conversations: take another, as --model.chat-template vicuna_v1; "
            "without --data.on-bad-sample skip the run says what is wrong with the first"
        )
    shortest, longest = counts.shortest, counts.longest
    raise ConfigError(
        f"{', '.join(dataset.folders)}: none of the {len(dataset):,} samples fits into a sequence "
        f"of data.tokens_per_sequence {tokens_per_sequence}: {lengths.losses}. The shortest has "
        f"{shortest} tokens, the longest {longest}: set --data.tokens-per-sequence to {shortest} "
        f"at least; {longest} cuts none"
    )


def _num_targets(tokens: SampleTokens) -> int:
    return len(tokens.labels) - tokens.labels.count(IGNORE_INDEX)


def _parts(
    dataset: TrainDataset, number: int, encoder: Encoder, progress: Progress
) -> Iterator[pa.Table]:
    """Yields the lengths of a folder's samples, a part of them at a time."""
    folder, size = dataset.folders[number], dataset.sizes[number]
    name = hashlib.blake2b(
        (encoder.identity() + dataset.fingerprints[number]).encode(), digest_size=16
    ).hexdigest()
    path = f"{folder.rstrip('/')}/_lengths/{name}.parquet"
    found = _stored(path, size)
    if found is not None:
        with found:
            for batch in found.iter_batches(batch_size=PIECE):
                yield pa.Table.from_batches([batch])
        return
    first = sum(dataset.sizes[:number])
    yield from _written(_measured(dataset, first, size, encoder, progress), path)


def _measured(
    dataset: TrainDataset, first: int, size: int, encoder: Encoder, progress: Progress
) -> Iterator[pa.Table]:
    bad = 0
    columns: dict[str, np.ndarray] = {}
    for i in progress(range(size), size):
        place = i % PIECE
        if place == 0:
            columns = {n: np.zeros(min(PIECE, size - i), t) for n, t in COLUMNS.items()}
        try:
            length = encoder.measure(dataset[first + i])
        except DatasetError as error:
            if encoder.on_bad_sample == "error":
                raise DatasetError(
                    f"{error}. --data.on-bad-sample skip trains without such samples"
                ) from error
            length, bad = replace(NOTHING, is_bad=True), bad + 1
            if bad <= MOST_NAMED:
                logger.warning("left out: %s", error)
        for name, value in asdict(length).items():
            columns[name][place] = value
        if place == PIECE - 1 or i == size - 1:
            yield pa.table(columns)


def _stored(path: str, size: int) -> pq.ParquetFile | None:
    """Returns the file of so many samples' lengths, if there is one."""
    if not exists(path):
        return None
    # From a store in one request: who writes the file anew meanwhile writes the same.
    file = pq.ParquetFile(local_path(path) if is_local(path) else io.BytesIO(read_bytes(path)))
    if file.metadata.num_rows == size:
        return file
    file.close()
    return None


def _written(parts: Iterator[pa.Table], path: str) -> Iterator[pa.Table]:
    """Yields the parts, and writes them as one file; a folder that takes none is no error."""
    with _LengthsFile(path) as file:
        for part in parts:
            file.write(part)
            yield part


class _LengthsFile:
    """A file that stands whole or not at all. Where it cannot be written, a warning says so."""

    def __init__(self, path: str) -> None:
        self._held = ExitStack()
        self._writer: pq.ParquetWriter | None = None
        with self._warning():
            schema = pa.schema({n: pa.from_numpy_dtype(dtype) for n, dtype in COLUMNS.items()})
            file = self._held.enter_context(commit_file(path))
            self._writer = self._held.enter_context(
                pq.ParquetWriter(file, schema, compression="zstd")
            )

    def write(self, part: pa.Table) -> None:
        if self._writer is not None:
            with self._warning():
                self._writer.write_table(part)

    def __enter__(self) -> "_LengthsFile":
        return self

    def __exit__(self, *error: Any) -> None:
        with self._warning():
            self._held.__exit__(*error)

    @contextmanager
    def _warning(self) -> Iterator[None]:
        try:
            yield
        except (OSError, StorageError) as error:
            logger.warning("the lengths of the samples are not kept: %s", error)
            self._writer = None
            with suppress(OSError, StorageError):
                self._held.__exit__(type(error), error, error.__traceback__)
