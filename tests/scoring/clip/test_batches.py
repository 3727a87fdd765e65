import dataclasses
import shutil
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from scoring.clip.preprocess import load_batches
from scoring.clip.scorer import ClipScorer, encode_in_parts, images_at_once
from tests.scoring.clip.test_scorer import CAPTIONS, make_images


def test_part_that_does_not_fit_is_halved_and_the_size_remembered() -> None:
    def encode(part: torch.Tensor) -> torch.Tensor:
        if len(part) > 3:
            raise torch.OutOfMemoryError("allocator of three rows")
        return part * 2

    batch = torch.arange(11)
    features, size = encode_in_parts(encode, batch, 16)
    assert features.tolist() == (batch * 2).tolist()
    assert size == 2


def test_row_that_does_not_fit_alone_is_an_error() -> None:
    def encode(part: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("no memory at all")

    with pytest.raises(torch.OutOfMemoryError):
        encode_in_parts(encode, torch.arange(4), 4)


COMPILED_ON = [
    pytest.param(
        "cpu",
        marks=[
            pytest.mark.slow,
            pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler"),
        ],
    ),
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
        ],
    ),
]


@pytest.mark.parametrize("device", COMPILED_ON)
def test_compiled_model_scores_as_the_plain_one_and_is_compiled_once(
    tiny_clip: Any, device: str
) -> None:
    images = make_images(len(CAPTIONS))
    plain = ClipScorer(tiny_clip.score_config(device=device)).score(images, CAPTIONS)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiling = ClipScorer(tiny_clip.score_config(device=device, compile_model=True))
    compiled = compiling.score(images, CAPTIONS)
    np.testing.assert_allclose(compiled.clip_score, plain.clip_score, atol=1e-4)
    assert len(CAPTIONS) % compiling.config.batch_size > 0
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_only_a_batch_that_is_not_whole_is_copied_to_fill_it_up(
    tiny_clip: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda encode, dynamic: encode)
    scorer = ClipScorer(tiny_clip.score_config(compile_model=True))
    given, seen = list[torch.Tensor](), list[torch.Tensor]()

    def kept(batches: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        for batch in batches:
            given.append(batch)
            yield batch

    encode = scorer._image_features

    def noted(batch: torch.Tensor) -> torch.Tensor:
        seen.append(batch)
        return encode(batch)

    monkeypatch.setattr(scorer, "_image_features", noted)
    images = load_batches(make_images(6), scorer.preprocessor, 4, 1, is_pinned=False)
    features = torch.cat(list(scorer._run_ahead(kept(images), None)))
    assert len(features) == 6
    assert [len(batch) for batch in seen] == [4, 4]
    assert [a.data_ptr() == b.data_ptr() for a, b in zip(given, seen, strict=True)] == [True, False]


class NarrowTower(torch.nn.Module):
    """An image tower for which the memory of a GPU is enough up to a number of images."""

    def __init__(self, tower: torch.nn.Module, most: int) -> None:
        super().__init__()
        self.tower, self.most = tower, most
        self.sizes: list[int] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(images))
        if len(images) > self.most:
            raise torch.OutOfMemoryError(f"memory for {self.most} images")
        return self.tower(images)


def test_size_that_fits_into_memory_is_found_once_and_kept_for_what_comes_next(
    tiny_clip: Any,
) -> None:
    images = make_images(len(CAPTIONS))
    plain = ClipScorer(tiny_clip.score_config(batch_size=8)).score(images, CAPTIONS)
    scorer = ClipScorer(tiny_clip.score_config(batch_size=8))
    scorer.model.visual = tower = NarrowTower(scorer.model.visual, most=3)
    found = scorer.score(images, CAPTIONS)
    assert tower.sizes == [8, 4, *[2] * 4, 2, 1]
    scorer.score(images[:4], CAPTIONS[:4])
    assert tower.sizes[8:] == [2, 2]
    assert scorer.fitted_batch_size == 2
    np.testing.assert_allclose(found.clip_score, plain.clip_score, atol=2e-6)


@pytest.mark.parametrize(("batch_size", "at_once"), [(40, 16), (6, 6)])
def test_a_processor_takes_a_batch_in_parts_that_are_recorded(
    tiny_clip: Any, batch_size: int, at_once: int
) -> None:
    images, captions = make_images(42), ["a cat"] * 42
    scorer = ClipScorer(tiny_clip.score_config(batch_size=batch_size))
    assert scorer.fitted_batch_size == at_once
    scorer.model.visual = tower = NarrowTower(scorer.model.visual, most=42)
    found = scorer.score(images, captions)
    assert tower.sizes == {40: [16, 16, 8, 2], 6: [6] * 7}[batch_size]
    scorer._image_batch = 42
    whole = scorer.score(images, captions)
    np.testing.assert_allclose(found.clip_score, whole.clip_score, atol=2e-6)


def test_a_compiled_model_and_a_gpu_take_a_whole_batch(tiny_clip: Any) -> None:
    config = tiny_clip.score_config(batch_size=64)
    compiled = dataclasses.replace(config, compile_model=True)
    assert images_at_once(config, torch.device("cuda")) == 64
    assert images_at_once(compiled, torch.device("cpu")) == 64
    assert images_at_once(config, torch.device("cpu")) == 16


def test_text_tower_sees_captions_by_length_in_batches_cut_to_their_longest(
    tiny_clip: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = ClipScorer(tiny_clip.score_config(batch_size=4))
    seen = list[torch.Tensor]()
    encode = scorer.text_tower.encode

    def noted(ids: torch.Tensor) -> torch.Tensor:
        seen.append(ids)
        return encode(ids)

    monkeypatch.setattr(scorer.text_tower, "encode", noted)
    words = [13, 1, 9, 2, 14, 1, 3, 10, 1]
    captions = ["a " * count for count in words]
    found, _ = scorer.encode_captions(captions)
    assert [tuple(ids.shape) for ids in seen] == [(4, 4), (4, 15), (1, 16)]
    lengths = [int(count) for ids in seen for count in (ids != 0).sum(dim=1)]
    assert lengths == sorted(count + 2 for count in words)
    alone = [scorer.encode_captions([caption])[0][0] for caption in captions]
    np.testing.assert_allclose(found, alone, atol=2e-6)
