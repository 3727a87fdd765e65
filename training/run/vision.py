"""What a run makes of its pictures before the first step: features, the projector's start."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from schemas.errors import DatasetError, StorageError
from schemas.progress import show_progress
from schemas.terminal import Console
from training.config import DataConfig, TrainConfig
from training.data.dataset import CorruptImage, RawSample, TrainDataset, open_images
from training.data.features import (
    PICTURES_AT_ONCE,
    FeatureShape,
    FeatureStore,
    Picture,
    batches_of,
    missing_pictures,
)
from training.data.lengths import Encoder
from training.engine.launch import by_first
from training.model.inputs import IGNORE_INDEX
from training.model.projector import plain_type
from training.model.start import FeatureMoments, start_projector, word_spread
from training.parts import IMAGE_MODES, Assembled, pixel_values
from training.run.folder import check_shared

STARTED = "projector_start.safetensors"
"""In the run's folder: where its projector started, so that a resumed run need not compute it."""
PAIRS_OF_START = {"scaled": 1_000, "regression": 10_000}
"""Most pairs that a start is computed from."""


def open_store(parts: Assembled, data: DataConfig, out: Path) -> FeatureStore:
    """Returns the store of the features of these parts, as far as it is filled.

    Raises:
        ConfigError: if the folder holds the features of another tower or preprocessing.
    """
    model, images = parts.model, parts.processor.image_processor
    config, tower = model.config, model.vision_tower
    runs_in = next(tower.parameters()).dtype
    dtype = torch.bfloat16 if runs_in == torch.bfloat16 else torch.float16
    shape = FeatureShape(
        vectors=config.num_image_tokens, channels=model.projector.width, dtype=dtype
    )
    kind = config.projector_type.removesuffix(plain_type(config.projector_type)).rstrip("_")
    description = {
        "tower": _tower_identity(model),
        "preprocessing": {
            "size": images.image_size,
            "mean": images.image_mean,
            "std": images.image_std,
            "mode": IMAGE_MODES[data.form],
        },
        "joined": kind or "not",
        "precision": str(dtype).removeprefix("torch."),
    }
    folder = Path(data.vision_features_folder) if data.vision_features_folder else None
    return FeatureStore(folder or out / "vision_features", description, shape)


def _tower_identity(model: Any) -> str:
    """Returns a hash of the tower's weights and of which of its features are read."""
    digest = hashlib.blake2b(digest_size=16)
    config = model.config
    read = [config.vision_feature_layer, config.vision_feature_select, config.image_scales]
    digest.update(json.dumps([config.vision_config.to_dict(), read], default=str).encode())
    for name, value in sorted(model.vision_tower.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def fill_store(
    store: FeatureStore,
    parts: Assembled,
    data: DataConfig,
    wanted: Sequence[tuple[TrainDataset, Iterable[int]]],
) -> None:
    """Computes what the store lacks of the pictures of these samples; all processes together.

    Raises:
        ConfigError: if there is no room for it.
        DatasetError: if a picture cannot be read, and none is to be skipped.
        StorageError: in all processes, if one could not write.
    """
    is_first = dist.get_rank() == 0
    needed = [(dataset, pictures_of(dataset, samples)) for dataset, samples in wanted]
    dist.barrier()  # all have opened the store before one of them writes
    check_shared(store.folder, "--data.vision-features-folder")
    # Where hosts see different files for a while, they would share out different pictures.
    before = by_first(store.files)
    store.read_index(before)
    missing = [(d, batch) for d, pictures in needed for batch in _batches(store, pictures)]
    count = sum(len(batch) for _, batch in missing)
    words = by_first(lambda: store.begin(count))
    if is_first:
        total = sum(len({p.digest for p in pictures}) for _, pictures in needed)
        Console(stderr=True).print(
            f"vision features: {total:,} pictures, {count:,} to compute, {words}", highlight=False
        )
    mine = missing[dist.get_rank() :: dist.get_world_size()]
    failure = None
    try:
        _compute(store, parts, data, mine, is_first)
    except (StorageError, DatasetError) as error:
        failure = error
    outcomes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(outcomes, (failure, store.written))
    for found, _ in outcomes:
        if found is not None:
            raise found
    store.read_index([*before, *(name for _, names in outcomes for name in names)])


def _batches(store: FeatureStore, pictures: Sequence[Picture]) -> Iterator[list[Picture]]:
    yield from batches_of(missing_pictures(store, pictures), store.shape)


def pictures_of(dataset: TrainDataset, samples: Iterable[int]) -> list[Picture]:
    """Returns the pictures of some samples."""
    return [
        Picture(digest=digest, sample=sample, number=number)
        for sample in samples
        for number, digest in enumerate(dataset[sample].image_hashes)
    ]


def _compute(
    store: FeatureStore,
    parts: Assembled,
    data: DataConfig,
    batches: Sequence[tuple[TrainDataset, list[Picture]]],
    is_first: bool,
) -> None:
    progress = show_progress("vision features", is_active=is_first)
    total = sum(-(-len(batch) // PICTURES_AT_ONCE) for _, batch in batches)

    def computed() -> Iterator[int]:
        for dataset, batch in batches:
            digests: list[str] = []
            rows: list[Tensor] = []
            for some, features in features_of(parts, data, dataset, batch):
                digests += [picture.digest for picture in some]
                rows.append(features.to(store.shape.dtype).cpu())
                yield len(digests)
            if digests:
                store.write(digests, torch.cat(rows))

    if total:
        for _ in progress(computed(), total):
            pass


class _Pixels(Dataset[Any]):
    """Gives pictures as the tower takes them, or why there is none."""

    def __init__(self, dataset: TrainDataset, pictures: Sequence[Picture], prepare: Any) -> None:
        self._dataset, self._pictures, self._prepare = dataset, pictures, prepare

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> Tensor | DatasetError:
        picture = self._pictures[index]
        sample = self._dataset[picture.sample]
        only: RawSample = dataclasses.replace(
            sample, image_ranges=sample.image_ranges[picture.number : picture.number + 1]
        )
        try:
            pixels: Tensor = self._prepare(open_images(only)[0])
        except DatasetError as error:
            return error
        return pixels


@torch.inference_mode()
def features_of(
    parts: Assembled, data: DataConfig, dataset: TrainDataset, pictures: Sequence[Picture]
) -> Iterator[tuple[list[Picture], Tensor]]:
    """Yields some of the pictures at a time, with what the projector reads of them, (n, R, W).

    Raises:
        DatasetError: if a picture cannot be read, and none is to be skipped.
    """
    model: Any = parts.model
    tower = model.vision_tower
    dtype = next(tower.parameters()).dtype
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    home = next(tower.parameters()).device
    images, mode = parts.processor.image_processor, IMAGE_MODES[data.form]
    pixels = _Pixels(dataset, pictures, _Prepare(images, mode))
    loader = DataLoader(
        pixels,
        batch_size=PICTURES_AT_ONCE,
        num_workers=data.workers,
        collate_fn=list,
        generator=torch.Generator(),
    )
    tower.to(device)
    try:
        start = 0
        for loaded in loader:
            some = list(pictures[start : start + len(loaded)])
            start += len(loaded)
            kept = [n for n, value in enumerate(loaded) if isinstance(value, Tensor)]
            _check_faults(loaded, data)
            if kept:
                batch = torch.stack([loaded[n] for n in kept]).to(device, dtype)
                yield [some[n] for n in kept], model.projector.reduce(tower(batch))
    finally:
        tower.to(home)


def _check_faults(loaded: Sequence[Tensor | DatasetError], data: DataConfig) -> None:
    for value in loaded:
        is_skipped = isinstance(value, CorruptImage) and data.on_corrupt == "skip"
        if isinstance(value, DatasetError) and not is_skipped:
            raise value


class _Prepare:
    """`pixel_values` with its settings, which can travel to workers."""

    def __init__(self, image_processor: Any, mode: str) -> None:
        self._image_processor, self._mode = image_processor, mode

    def __call__(self, image: Any) -> Tensor:
        return pixel_values(self._image_processor, self._mode, image)


def samples_of_start(
    config: TrainConfig, dataset: TrainDataset, is_allowed: np.ndarray
) -> list[int]:
    """Returns the samples that the projector's start is computed from, of those allowed.

    They have one picture each, and are the first by their keys, whatever the plan takes of them.

    Args:
        is_allowed: (samples,) of each.
    """
    most = PAIRS_OF_START.get(config.model.projector_start, 0)
    by_key = dataset.first_by_key(is_allowed)
    one_picture = (sample for sample in by_key if dataset[sample].num_images == 1)
    return list(islice(one_picture, most))


def start_of_projector(
    parts: Assembled,
    config: TrainConfig,
    dataset: TrainDataset,
    samples: Sequence[int],
    encoder: Encoder,
    store: FeatureStore | None,
    out: Path,
) -> None:
    """Sets where a new model's projector starts; the same on every process, and when resumed.

    Args:
        samples: those that it is computed from, as `samples_of_start` gives them.
    """
    start = config.model.projector_start
    if start == "paper":
        return
    path, projector = out / STARTED, parts.model.projector
    is_first = dist.get_rank() == 0
    words = ""
    if is_first and not path.exists():
        words = _computed_start(parts, config, dataset, samples, encoder, store)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{STARTED}.tmp")
        save_file({k: v.contiguous() for k, v in projector.state_dict().items()}, aside)
        aside.replace(path)
    elif is_first:
        projector.load_state_dict(load_file(path))
    for value in projector.state_dict().values():
        dist.broadcast(value, src=0)
    if words:
        Console(stderr=True).print(words, highlight=False)


def _computed_start(
    parts: Assembled,
    config: TrainConfig,
    dataset: TrainDataset,
    samples: Sequence[int],
    encoder: Encoder,
    store: FeatureStore | None,
) -> str:
    """Returns what a start came to, in words, once the projector has it."""
    start, model = config.model.projector_start, parts.model
    table: Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
    pictures = pictures_of(dataset, samples)
    moments = FeatureMoments(model.projector.width, table.shape[1])
    some: list[Tensor] = []
    for batch, features in _stored_or_computed(parts, config.data, dataset, pictures, store):
        said = [_mean_embedding(dataset[picture.sample], encoder, table) for picture in batch]
        moments.add(features, torch.stack(said))
        if len(some) * PICTURES_AT_ONCE < PAIRS_OF_START["scaled"]:
            some.append(features.float().cpu())
    spread = config.model.projector_spread * word_spread(table)
    report = start_projector(model.projector, moments, torch.cat(some), spread, start)
    return f"projector starts {start}" + (f": {report}" if report else "")


def _stored_or_computed(
    parts: Assembled,
    data: DataConfig,
    dataset: TrainDataset,
    pictures: Sequence[Picture],
    store: FeatureStore | None,
) -> Iterator[tuple[list[Picture], Tensor]]:
    if store is None:
        yield from features_of(parts, data, dataset, pictures)
        return
    known = [picture for picture in pictures if picture.digest in store]
    for first in range(0, len(known), PICTURES_AT_ONCE):
        some = known[first : first + PICTURES_AT_ONCE]
        yield some, torch.stack([store[picture.digest] for picture in some])


def _mean_embedding(sample: RawSample, encoder: Encoder, table: Tensor) -> Tensor:
    """Returns the mean embedding of the words that are learnt of a sample, (D,)."""
    tokens = encoder.encode(sample)
    assert tokens is not None, "the plan leaves out what has nothing to learn"
    words = [label for label in tokens.labels if label != IGNORE_INDEX]
    return table[torch.tensor(words)].detach().float().mean(dim=0)
