import io
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from scoring.clip.preprocess import BATCHES_AHEAD, ImagePreprocessor, ImageSource, load_batches

SIZES = [(64, 64), (40, 90), (90, 40), (17, 23), (300, 20), (1, 1)]


def make_image(width: int, height: int, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(width * 1000 + height)
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
def test_preprocessing_equals_open_clips_bit_for_bit(
    resize_mode: str, interpolation: str, size: tuple[int, int]
) -> None:
    settings: Any = {
        "size": size,
        "resize_mode": resize_mode,
        "interpolation": interpolation,
        "mean": (0.48, 0.45, 0.4),
        "std": (0.26, 0.27, 0.28),
        "fill_color": 114,
    }
    preprocessing = PreprocessCfg(**settings)
    transform = image_transform_v2(preprocessing, is_train=False)
    preprocessor = ImagePreprocessor(asdict(preprocessing))
    for width, height in SIZES:
        image = make_image(width, height)
        pixels = torch.from_numpy(preprocessor.pixels(image).copy())
        assert torch.equal(preprocessor.normalize(pixels[None])[0], transform(image))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "LA"])
def test_other_colour_modes_are_seen_as_open_clip_sees_them(mode: str) -> None:
    preprocessing = PreprocessCfg(size=(32, 32))
    transform = image_transform_v2(preprocessing, is_train=False)
    preprocessor = ImagePreprocessor(asdict(preprocessing))
    image = make_image(50, 40, mode)
    pixels = torch.from_numpy(preprocessor.pixels(image).copy())
    assert torch.equal(preprocessor.normalize(pixels[None])[0], transform(image))


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_encoded_images_decode_as_pillow_decodes_them(image_format: str) -> None:
    buffer = io.BytesIO()
    make_image(70, 50).save(buffer, image_format)
    preprocessor = ImagePreprocessor(asdict(PreprocessCfg(size=(32, 32))))
    expected = preprocessor.pixels(Image.open(io.BytesIO(buffer.getvalue())))
    assert np.array_equal(preprocessor.pixels(buffer.getvalue()), expected)
    decoded = np.asarray(Image.open(io.BytesIO(buffer.getvalue())).convert("RGB"))
    assert np.array_equal(preprocessor.pixels(decoded), expected)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_pictures_cut_between_the_passes_equal_those_cut_after_them(
    interpolation: Any,
) -> None:
    preprocessing = PreprocessCfg(size=(32, 32), interpolation=interpolation)
    *spatial, _, _ = image_transform_v2(preprocessing, is_train=False).transforms
    preprocessor = ImagePreprocessor(asdict(preprocessing))
    assert preprocessor._crop is not None
    wide = [(width, height) for width in range(30, 60) for height in (17, 31, 32, 33, 47)]
    tall = [(height, width) for width, height in [*wide, (70, 8), (200, 20), (500, 97)]]
    for size in wide + tall:
        expected = image = make_image(*size)
        for step in spatial:
            expected = step(expected)
        assert np.array_equal(preprocessor.pixels(image), np.asarray(expected)), size


def test_jpegs_of_every_kind_decode_as_pillow_decodes_them() -> None:
    preprocessor = ImagePreprocessor(asdict(PreprocessCfg(size=(24, 24))))
    for mode in ("RGB", "L", "CMYK"):
        for settings in ({}, {"subsampling": 0}, {"subsampling": 1}, {"progressive": True}):
            buffer = io.BytesIO()
            make_image(67, 45, mode).save(buffer, "JPEG", **settings)
            data = buffer.getvalue()
            expected = preprocessor.pixels(Image.open(io.BytesIO(data)))
            assert np.array_equal(preprocessor.pixels(data), expected), (mode, settings)


@pytest.mark.parametrize("threads", [1, 4])
def test_batches_keep_the_order_and_only_the_last_is_smaller(threads: int) -> None:
    preprocessor = ImagePreprocessor(asdict(PreprocessCfg(size=(8, 8))))
    images = [np.full((8, 8, 3), value, np.uint8) for value in range(23)]
    batches = list(load_batches(images, preprocessor, 10, threads, is_pinned=False))
    assert [len(batch) for batch in batches] == [10, 10, 3]
    assert torch.cat(batches)[:, 0, 0, 0].tolist() == list(range(23))


def test_images_are_taken_only_a_few_batches_ahead() -> None:
    taken = 0

    def images() -> Iterator[ImageSource]:
        nonlocal taken
        for _ in range(1000):
            taken += 1
            yield np.zeros((8, 8, 3), np.uint8)

    preprocessor = ImagePreprocessor(asdict(PreprocessCfg(size=(8, 8))))
    batches = load_batches(images(), preprocessor, 5, 2, is_pinned=False)
    next(batches)
    assert taken <= 5 * (BATCHES_AHEAD + 1)
    batches.close()  # type: ignore[attr-defined]


def test_image_that_cannot_be_decoded_stops_the_shard() -> None:
    preprocessor = ImagePreprocessor(asdict(PreprocessCfg(size=(8, 8))))
    with pytest.raises(OSError, match="cannot identify image"):
        list(load_batches([b"no image"], preprocessor, 5, 2, is_pinned=False))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize(
    "mean_std", [(OPENAI_DATASET_MEAN, OPENAI_DATASET_STD), ((0,) * 3, (1,) * 3)]
)
def test_gpu_normalizes_every_value_as_the_cpu_does_bit_for_bit(mean_std: Any) -> None:
    mean, std = mean_std
    preprocessor = ImagePreprocessor(asdict(PreprocessCfg(size=(16, 16), mean=mean, std=std)))
    values = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    on_cpu = preprocessor.normalize(values)
    on_gpu = preprocessor.normalize(values.cuda()).cpu()
    assert torch.equal(on_gpu.view(torch.int32), on_cpu.view(torch.int32))
