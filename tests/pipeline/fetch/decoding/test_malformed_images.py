"""Real pictures in every format, then damaged: no decoder crashes, hangs or takes the worker."""

import asyncio
import io
from collections import Counter
from collections.abc import Callable

import numpy as np
from PIL import Image

from pipeline.fetch.decoding.pool import DecodedImage, DecoderPool
from schemas.errors import RejectReason, SampleRejected
from scoring.images.settings import ImageSettings
from tests.curations import CORPUS

SETTINGS = ImageSettings(image_size=32)
MUTATIONS_EACH = 16


def pictures() -> list[Image.Image]:
    """Returns three pictures of the corpus, one with a soft edge, and a tile of one of them."""
    names = ("animals/amphibians/frog-1", "plants/lettuce_bolted", "food/fruit/grapes")
    found = [Image.open(CORPUS / "images" / f"{name}.png").convert("RGBA") for name in names]
    return [one.resize((96, 72), Image.Resampling.LANCZOS) for one in found]


def saved(image: Image.Image, file_format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def exif(orientation: int) -> Image.Exif:
    values = Image.Exif()
    values[274] = orientation  # Orientation
    values[271] = "a camera"  # Make
    return values


def deep(image: Image.Image) -> Image.Image:
    """Returns a grey picture of 16 bits."""
    grey = np.asarray(image.convert("L")).astype(np.uint16) * 257
    return Image.fromarray(grey)


def files_of(image: Image.Image, others: list[Image.Image]) -> dict[str, bytes]:
    """Returns a picture in every format, each with the options that its decoder knows apart."""
    rgb = image.convert("RGB")
    animation: dict[str, object] = {"save_all": True, "append_images": others, "duration": 40}
    pages: dict[str, object] = {
        "save_all": True,
        "append_images": [other.convert("RGB") for other in others],
    }
    return {
        "JPEG": saved(rgb, "JPEG", quality=85),
        "progressive JPEG": saved(rgb, "JPEG", progressive=True, subsampling=2),
        "CMYK JPEG": saved(rgb.convert("CMYK"), "JPEG"),
        "grey JPEG": saved(rgb.convert("L"), "JPEG", optimize=True),
        "turned JPEG": saved(rgb, "JPEG", exif=exif(6), restart_marker_blocks=3),
        "PNG": saved(image, "PNG"),
        "palette PNG": saved(rgb.quantize(32), "PNG", transparency=3),
        "16-bit PNG": saved(deep(image), "PNG"),
        "1-bit PNG": saved(rgb.convert("1"), "PNG"),
        "turned PNG": saved(rgb, "PNG", exif=exif(3)),
        "GIF": saved(rgb.quantize(64), "GIF"),
        "animated GIF": saved(image, "GIF", loop=0, disposal=2, **animation),
        "WebP": saved(image, "WEBP", quality=80, exif=exif(8)),
        "lossless WebP": saved(image, "WEBP", lossless=True),
        "animated WebP": saved(image, "WEBP", **animation),
        "BMP": saved(rgb, "BMP"),
        "palette BMP": saved(rgb.quantize(16), "BMP"),
        "TIFF": saved(rgb, "TIFF"),
        "LZW TIFF": saved(image, "TIFF", compression="tiff_lzw"),
        "deflated TIFF": saved(deep(image), "TIFF", compression="tiff_adobe_deflate"),
        "JPEG TIFF": saved(rgb, "TIFF", compression="jpeg"),
        "fax TIFF": saved(rgb.convert("1"), "TIFF", compression="group4"),
        "CMYK TIFF": saved(rgb.convert("CMYK"), "TIFF", compression="packbits"),
        "TIFF of pages": saved(rgb, "TIFF", compression="tiff_lzw", **pages),
        "AVIF": saved(rgb, "AVIF", quality=70, speed=10),
        "AVIF with alpha": saved(image, "AVIF", speed=10),
        "animated AVIF": saved(image, "AVIF", speed=10, **animation),
    }


Mutation = Callable[[bytearray, int, int, np.random.Generator], None]


def scatter(data: bytearray, start: int, stop: int, generator: np.random.Generator) -> None:
    for place in generator.integers(12, len(data), 1 + len(data) // 50):
        data[place] = generator.integers(0, 256)


def cut_out(data: bytearray, start: int, stop: int, generator: np.random.Generator) -> None:
    del data[start:stop]


def cut_off(data: bytearray, start: int, stop: int, generator: np.random.Generator) -> None:
    del data[stop:]


def double(data: bytearray, start: int, stop: int, generator: np.random.Generator) -> None:
    data[stop:stop] = data[start:stop]


def drown(data: bytearray, start: int, stop: int, generator: np.random.Generator) -> None:
    data[start:stop] = generator.bytes(stop - start)


def exaggerate(data: bytearray, start: int, stop: int, generator: np.random.Generator) -> None:
    """Puts extreme numbers where sizes, offsets and counts stand, in the header or anywhere."""
    end = min(len(data), 200) if generator.random() < 0.7 else len(data)
    place = int(generator.integers(12, end - 4))
    extremes = (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f")
    data[place : place + 4] = extremes[int(generator.integers(0, 4))]


def flip(data: bytearray, start: int, stop: int, generator: np.random.Generator) -> None:
    """Turns single bits of the header, which leaves most of it as it was."""
    for place in generator.integers(12, min(len(data), 400), 3):
        data[place] ^= 1 << int(generator.integers(0, 8))


MUTATIONS: tuple[Mutation, ...] = (scatter, cut_out, cut_off, double, drown, exaggerate, flip)


def mutated(data: bytes, mutation: Mutation, generator: np.random.Generator) -> bytes:
    broken = bytearray(data)
    start, stop = sorted(int(place) for place in generator.integers(12, len(data), 2))
    mutation(broken, start, stop, generator)
    return bytes(broken)


def decoded(files: list[bytes]) -> list[DecodedImage | SampleRejected]:
    async def run() -> list[DecodedImage | SampleRejected]:
        pool = DecoderPool(SETTINGS, 2, 30.0)
        try:
            return await asyncio.gather(*(one(pool, data) for data in files))
        finally:
            await pool.close()

    async def one(pool: DecoderPool, data: bytes) -> DecodedImage | SampleRejected:
        try:
            return await pool.decode(data, None)
        except SampleRejected as rejected:
            return rejected

    return asyncio.run(run())


def test_every_format_of_the_corpus_is_a_picture_before_it_is_damaged() -> None:
    first, *others = pictures()
    files = files_of(first, others)
    found = decoded(list(files.values()))
    rejected = {
        name: one.detail
        for name, one in zip(files, found, strict=True)
        if isinstance(one, SampleRejected)
    }
    assert rejected == {}


def test_four_hundred_damaged_pictures_neither_crash_nor_hang_a_decoder() -> None:
    generator = np.random.default_rng(0)
    images = pictures()
    kinds = [files_of(one, [two for two in images if two is not one]) for one in images]
    names, files = [], []
    for place, name in enumerate(kinds[0]):
        for number in range(MUTATIONS_EACH):
            mutation = MUTATIONS[(place + number) % len(MUTATIONS)]
            names.append(f"{name}, {mutation.__name__}, {number}")
            files.append(mutated(kinds[number % len(kinds)][name], mutation, generator))
    assert len(set(files)) >= 400
    found = decoded(files)
    reasons = [one.reason if isinstance(one, SampleRejected) else None for one in found]
    crashed = [
        name
        for name, reason in zip(names, reasons, strict=True)
        if reason is RejectReason.DECODER_CRASHED
    ]
    assert crashed == []
    assert Counter(reasons)[RejectReason.DECODE_FAILED] > 150
