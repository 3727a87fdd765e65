"""Images to the model's input: exactly open_clip's preprocessing, decoded in threads ahead."""

import io
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import simplejpeg
import torch
from open_clip.transform import MaybeConvertMode, MaybeToTensor, PreprocessCfg, image_transform_v2
from PIL import Image
from torchvision.transforms import CenterCrop, InterpolationMode, Resize

from scoring.clip.timing import FeedTime

ImageSource = bytes | Image.Image | npt.NDArray[np.uint8]
"""An encoded image, a decoded one, or its pixels: uint8 (height, width, 3) in RGB."""

Image.MAX_IMAGE_PIXELS = None
"""Off: the fetch stage has held the stored images to a limit of its own."""

BATCHES_AHEAD = 3
IMAGES_PER_TASK = 8

JPEG_START = b"\xff\xd8\xff"
PLAIN_COLORS = frozenset({"YCbCr", "Gray", "RGB"})
"""Colours of a JPEG that Pillow and libjpeg turn into RGB alike."""

FILTERS = {
    InterpolationMode.BICUBIC: Image.Resampling.BICUBIC,
    InterpolationMode.BILINEAR: Image.Resampling.BILINEAR,
}


class ImagePreprocessor:
    """open_clip's evaluation transform in two halves.

    The first, up to the pixels, runs on PIL images in threads; the second, `normalize`, runs on a
    whole batch on the model's device. Together they compute open_clip's transform bit for bit.
    """

    def __init__(self, preprocessing: dict[str, Any]) -> None:
        settings = PreprocessCfg(**preprocessing)
        transform = image_transform_v2(settings, is_train=False)
        steps = transform.transforms
        border = next(i for i, step in enumerate(steps) if isinstance(step, MaybeToTensor))
        self._spatial = steps[:border]
        self._crop = _cropped_resize(self._spatial)
        normalization = steps[-1]
        self._white = torch.tensor(255.0)  # a tensor: a GPU multiplies by a number's reciprocal
        self._mean = torch.tensor(normalization.mean).view(1, 3, 1, 1)
        self._std = torch.tensor(normalization.std).view(1, 3, 1, 1)
        self.height, self.width = (int(side) for side in preprocessing["size"])

    def pixels(self, source: ImageSource) -> npt.NDArray[np.uint8]:
        """Returns the image resized and cropped for the model: (height, width, 3)."""
        image = _as_image(source)
        if self._crop is not None and image.mode == "RGB":
            cropped = _resized_within(image, *self._crop)
            if cropped is not None:
                return np.asarray(cropped)
        for step in self._spatial:
            image = step(image)
        return np.asarray(image)

    def normalize(
        self, pixels: torch.Tensor, memory_format: torch.memory_format = torch.contiguous_format
    ) -> torch.Tensor:
        """Returns a batch (B, height, width, 3) uint8 as (B, 3, height, width) float32."""
        if self._mean.device != pixels.device:
            self._white = self._white.to(pixels.device)
            self._mean, self._std = self._mean.to(pixels.device), self._std.to(pixels.device)
        batch = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=memory_format)
        return batch.div_(self._white).sub_(self._mean).div_(self._std)


def _cropped_resize(steps: list[Any]) -> tuple[int, int, Image.Resampling] | None:
    """Returns height, width and filter of a resize of the short side and a crop of the middle.

    None if the steps do anything else to an RGB image.
    """
    match steps:
        case [
            Resize(size=int() as short, interpolation=interpolation, max_size=None),
            CenterCrop(size=(height, width)),
            MaybeConvertMode(mode="RGB"),
        ] if short == height == width and interpolation in FILTERS:
            return height, width, FILTERS[interpolation]
    return None


def _resized_within(
    image: Image.Image, height: int, width: int, method: Image.Resampling
) -> Image.Image | None:
    """Returns the middle of an image whose short side is resized; None if it is square.

    Pillow resizes rows first, rounds, then columns. Of a wide image, columns that are cut off need
    no second pass; of a tall one, rows that what is cut off is made from need no first.
    """
    if image.width > image.height:
        whole_width = int(width * image.width / image.height)  # as torchvision has it
        left = round((whole_width - width) / 2.0)
        rows = image.resize((whole_width, image.height), method)
        return rows.crop((left, 0, left + width, image.height)).resize((width, height), method)
    if image.width < image.height:
        whole_height = int(height * image.height / image.width)
        top = round((whole_height - height) / 2.0)
        first, last = _rows_of(top, top + height, image.height, whole_height)
        rows = image.crop((0, first, image.width, last)).resize((width, last - first), method)
        canvas = Image.new("RGB", (width, image.height))
        canvas.paste(rows, (0, first))
        return canvas.resize((width, whole_height), method).crop((0, top, width, top + height))
    return None


def _rows_of(top: int, bottom: int, height: int, whole_height: int) -> tuple[int, int]:
    """Returns from which of an image's rows those from `top` to `bottom` of the resized are made.

    A filter reaches two rows to either side, or two of the resized where that is more.
    """
    scale = height / whole_height
    reach = 2.0 * max(scale, 1.0) + 1.0
    return max(0, int(top * scale - reach)), min(height, math.ceil(bottom * scale + reach))


def _as_image(source: ImageSource) -> Image.Image:
    if isinstance(source, bytes):
        pixels = jpeg_pixels(source)
        return Image.open(io.BytesIO(source)) if pixels is None else Image.fromarray(pixels)
    if isinstance(source, np.ndarray):
        return Image.fromarray(source)
    return source


def jpeg_pixels(data: bytes) -> npt.NDArray[np.uint8] | None:
    """Returns the pixels of a usual JPEG, decoded without Pillow's detours; None of any other."""
    if not data.startswith(JPEG_START):
        return None
    try:
        if simplejpeg.decode_jpeg_header(data)[2] not in PLAIN_COLORS:
            return None
        pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(data)
    except ValueError:  # Pillow says what is wrong with it, or reads it all the same
        return None
    return pixels


@dataclass(slots=True)
class _Pending:
    pixels: torch.Tensor
    tasks: list[Future[None]]

    def result(self) -> torch.Tensor:
        for task in self.tasks:
            task.result()
        return self.pixels


def load_batches(
    sources: Iterable[ImageSource],
    preprocessor: ImagePreprocessor,
    batch_size: int,
    threads: int,
    *,
    is_pinned: bool,
    took: FeedTime | None = None,
) -> Iterator[torch.Tensor]:
    """Yields the images in order, in batches (B, height, width, 3) of uint8.

    Threads work on the batches that come next while the caller works on one. At most
    `BATCHES_AHEAD` batches wait.

    Args:
        is_pinned: whether the batches lie in page-locked memory, for asynchronous copies to a GPU.
        took: where what it takes is added up.
    """
    took = took or FeedTime()
    took.threads = threads
    waiting: deque[_Pending] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    try:
        for batch in _batched(sources, batch_size, took):
            waiting.append(_begin(batch, preprocessor, pool, is_pinned, took))
            if len(waiting) > BATCHES_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin(
    batch: list[ImageSource],
    preprocessor: ImagePreprocessor,
    pool: ThreadPoolExecutor,
    is_pinned: bool,
    took: FeedTime,
) -> _Pending:
    shape = (len(batch), preprocessor.height, preprocessor.width, 3)
    pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=is_pinned)
    rows = pixels.numpy()

    def fill(start: int) -> None:
        began = time.perf_counter()
        for row in range(start, min(start + IMAGES_PER_TASK, len(batch))):
            rows[row] = preprocessor.pixels(batch[row])
        took.thread_seconds.append(time.perf_counter() - began)

    tasks = [pool.submit(fill, start) for start in range(0, len(batch), IMAGES_PER_TASK)]
    return _Pending(pixels, tasks)


def _batched(
    sources: Iterable[ImageSource], size: int, took: FeedTime
) -> Iterator[list[ImageSource]]:
    sources = iter(sources)
    while True:
        began = time.perf_counter()
        batch = list(islice(sources, size))
        took.reading_seconds += time.perf_counter() - began
        if not batch:
            return
        yield batch
