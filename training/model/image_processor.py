"""From a picture of any shape to the square of numbers that the vision tower takes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from schemas.errors import ConfigError

IMAGE_MODES = ("pad", "crop", "squash")
"""How a picture becomes square.

pad: enlarged to a square with the mean colour, nothing is lost (stage 2 of the paper)
crop: the shorter side fits, the middle is cut out (stage 1 of the paper)
squash: both sides fit, shapes change
"""

MOST_SIDE = 2**14
"""Of a square that is padded: its pixels take 0.8 GB. A longer picture is shrunk to it before."""
MOST_RATIO = 64
"""Of longer to shorter side. Of a longer picture the middle is cut out before its size changes."""


class AlignGPTImageProcessor(BaseImageProcessor):
    """Makes pictures square, scales them with bicubic interpolation and normalises them.

    Source: LLaVA-1.5 (arXiv:2310.03744) for padding; the CLIP image processor for the rest.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012

    def __init__(
        self,
        image_size: int = 336,
        image_mean: Sequence[float] = (0.48145466, 0.4578275, 0.40821073),
        image_std: Sequence[float] = (0.26862954, 0.26130258, 0.27577711),
        image_mode: str = "pad",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.image_size = image_size
        self.image_mean, self.image_std = list(image_mean), list(image_std)
        self.image_mode = _checked_mode(image_mode)

    def __call__(  # type: ignore[override]
        self,
        images: Any,
        image_mode: str | None = None,
        return_tensors: str | None = "pt",
        **unused: Any,
    ) -> BatchFeature:
        """Returns `pixel_values`, (I, 3, S, S) float32, for one picture or several."""
        return self.preprocess(images, image_mode=image_mode, return_tensors=return_tensors)

    def preprocess(
        self,
        images: Any,
        image_mode: str | None = None,
        return_tensors: str | None = "pt",
        **unused: Any,
    ) -> BatchFeature:
        """Returns `pixel_values`, (I, 3, S, S) float32, for one picture or several."""
        is_several = isinstance(images, list | tuple) or getattr(images, "ndim", 0) > 3
        pictures = images if is_several else [images]
        pixels = [self.pixels(picture, image_mode) for picture in pictures]
        return BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)

    def pixels(self, image: Any, image_mode: str | None = None) -> NDArray[np.float32]:
        """Returns one picture, (3, S, S): what a data loader's worker needs.

        Args:
            image: a PIL image of any mode, or what `as_picture` takes.
            image_mode: one of IMAGE_MODES; the processor's own by default.
        """
        picture = image if isinstance(image, Image.Image) else as_picture(image)
        mode = _checked_mode(image_mode or self.image_mode)
        square = _square(as_rgb(picture), mode, self.image_size, self.image_mean)
        values = np.asarray(square, dtype=np.float32) / np.float32(255.0)
        mean = np.asarray(self.image_mean, dtype=np.float32)
        std = np.asarray(self.image_std, dtype=np.float32)
        normalised: NDArray[np.float32] = ((values - mean) / std).transpose(2, 0, 1)
        return np.ascontiguousarray(normalised)


CHANNELS = (1, 3, 4)
"""Grey, RGB and RGBA."""


def as_picture(values: Any) -> Image.Image:
    """Returns the picture in an array or tensor: (H, W), (H, W, C) or (C, H, W), C of CHANNELS.

    Args:
        values: bytes of 0 to 255, or fractions of 0 to 1.

    Raises:
        ConfigError: if it is of another shape, or its numbers are outside of these.
    """
    if isinstance(values, Tensor):
        is_fraction = values.is_floating_point()
        array = values.detach().cpu().double().numpy()
    else:
        array = np.asarray(values)
        is_fraction = np.issubdtype(array.dtype, np.floating)
    if array.ndim == 3 and array.shape[-1] not in CHANNELS and array.shape[0] in CHANNELS:
        array = array.transpose(1, 2, 0)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in CHANNELS):
        raise ConfigError(
            f"a picture is (H, W), (H, W, C) or (C, H, W), with C one of {CHANNELS}; got an array "
            f"of {tuple(np.shape(values))}"
        )
    highest = 1.0 if is_fraction else 255.0
    if array.size == 0 or not (array.min() >= 0 and array.max() <= highest):
        raise ConfigError(
            "a picture's numbers are bytes of 0 to 255 or fractions of 0 to 1; give it as it is, "
            "not normalised"
        )
    pixels = np.rint(array * (255.0 / highest)).astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)


def as_rgb(image: Image.Image) -> Image.Image:
    """Returns the picture upright and in RGB, transparent parts on white."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode == "RGB":
        return upright
    if upright.has_transparency_data:
        with_alpha = upright.convert("RGBA")
        white = Image.new("RGBA", with_alpha.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, with_alpha).convert("RGB")
    return upright.convert("RGB")


def _square(image: Image.Image, mode: str, size: int, mean: Sequence[float]) -> Image.Image:
    """Returns the picture as a square of `size` pixels a side."""
    image = _bounded(image, mode)
    width, height = image.size
    if mode == "pad" and width != height:
        side = max(width, height)
        red, green, blue = (int(value * 255) for value in mean)
        padded = Image.new("RGB", (side, side), (red, green, blue))
        padded.paste(image, ((side - width) // 2, (side - height) // 2))
        image = padded
    elif mode == "crop":
        if width <= height:
            new_width, new_height = size, int(size * height / width)
        else:
            new_width, new_height = int(size * width / height), size
        image = image.resize((new_width, new_height), Image.Resampling.BICUBIC)
        left, top = (new_width - size) // 2, (new_height - size) // 2
        return image.crop((left, top, left + size, top + size))
    if image.size == (size, size):
        return image
    return image.resize((size, size), Image.Resampling.BICUBIC)


def _bounded(image: Image.Image, mode: str) -> Image.Image:
    """Returns what a square shows of a picture, so that no picture's shape asks for memory.

    One of 65,535 x 1 pixels, 400 bytes as a JPEG, would be padded to 13 GB.
    """
    width, height = image.size
    short, long = sorted(image.size)
    if mode == "pad" and long > MOST_SIDE:
        sides = (max(1, width * MOST_SIDE // long), max(1, height * MOST_SIDE // long))
        return image.resize(sides, Image.Resampling.BICUBIC)
    if mode == "crop" and long > MOST_RATIO * short:
        left, top = (max(0, side - 2 * short) // 2 for side in (width, height))
        return image.crop((left, top, width - left, height - top))
    return image


def _checked_mode(image_mode: str) -> str:
    if image_mode not in IMAGE_MODES:
        raise ConfigError(f"image_mode must be one of {', '.join(IMAGE_MODES)}, got {image_mode}")
    return image_mode
