import asyncio
import io
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.decoders import DecodedImage, DecoderPool, DecoderStartError
from schemas.errors import RejectReason, SampleRejected
from scoring.config import ImageSettings
from scoring.images import prepare_image

SETTINGS = ImageSettings(image_size=32)
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")


def image_file(file_format: str, seed: int = 0) -> bytes:
    small = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(small).resize((70, 50), Image.Resampling.BICUBIC).save(file, file_format)
    return file.getvalue()


async def decode_all(pool: DecoderPool, files: list[bytes]) -> list[DecodedImage | RejectReason]:
    async def one(data: bytes) -> DecodedImage | RejectReason:
        try:
            return await pool.decode(data, None)
        except SampleRejected as rejected:
            return rejected.reason

    return await asyncio.gather(*(one(data) for data in files))


def test_a_pool_gives_what_the_function_gives() -> None:
    pool = DecoderPool(SETTINGS, 2, 30.0)
    files = [image_file(name, seed) for seed, name in enumerate(FORMATS)]
    found = asyncio.run(decode_all(pool, files))
    pool.close()
    for data, image in zip(files, found, strict=True):
        expected = prepare_image(data, SETTINGS)
        assert isinstance(image, DecodedImage)
        assert (image.encoded, image.pixel_hash) == (expected.encoded, expected.pixel_hash)


def test_a_decoder_that_dies_costs_its_image_and_is_replaced() -> None:
    pool = DecoderPool(SETTINGS, 1, 30.0)
    good = image_file("JPEG")

    async def kill_in_between() -> list[DecodedImage | RejectReason]:
        first = await decode_all(pool, [good])
        process = pool._idle.get()
        assert process is not None
        os.kill(process.pid, signal.SIGSEGV)
        process.wait()
        pool._idle.put(process)
        return first + await decode_all(pool, [good]) + await decode_all(pool, [good])

    found = asyncio.run(kill_in_between())
    pool.close()
    assert found[1] is RejectReason.DECODER_CRASHED
    assert found[0] == found[2] != RejectReason.DECODER_CRASHED


def test_a_decoder_that_hangs_is_ended_and_replaced() -> None:
    # A time limit that decoding a large image cannot keep stands for a hang.
    file = io.BytesIO()
    Image.new("RGB", (8000, 8000)).save(file, "PNG")
    pool = DecoderPool(SETTINGS, 1, 0.2)
    found = asyncio.run(decode_all(pool, [file.getvalue(), image_file("JPEG")]))
    pool.close()
    assert found[0] is RejectReason.DECODER_CRASHED
    assert isinstance(found[1], DecodedImage)


def test_a_file_of_the_user_named_like_ours_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pipeline.py").write_text("raise SystemExit('not ours')")
    monkeypatch.chdir(tmp_path)
    pool = DecoderPool(SETTINGS, 1, 30.0)
    found = asyncio.run(decode_all(pool, [image_file("JPEG")]))
    pool.close()
    assert isinstance(found[0], DecodedImage)


def test_a_decoder_that_cannot_start_stops_the_run_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cv2.py").write_text("raise ImportError('libGL.so.1 is missing')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    pool = DecoderPool(SETTINGS, 1, 30.0)
    with pytest.raises(DecoderStartError, match=r"libGL\.so\.1 is missing"):
        asyncio.run(decode_all(pool, [image_file("JPEG")]))
    pool.close()


def test_a_decoder_that_hangs_at_its_start_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cv2.py").write_text("import time; time.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setattr("pipeline.decoders.START_SECONDS", 1)
    pool = DecoderPool(SETTINGS, 1, 30.0)
    with pytest.raises(DecoderStartError):
        asyncio.run(decode_all(pool, [image_file("JPEG")]))
    pool.close()


@pytest.mark.parametrize("count", [1, 3])
def test_closing_a_pool_ends_its_processes(count: int) -> None:
    pool = DecoderPool(SETTINGS, count, 30.0)
    asyncio.run(decode_all(pool, [image_file("JPEG")] * 6))
    processes = [one for one in list(pool._idle.queue) if one is not None]
    pool.close()
    assert processes
    assert all(process.poll() is not None for process in processes)
