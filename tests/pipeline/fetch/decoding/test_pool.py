import asyncio
import io
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from pipeline.fetch.decoding.pool import DecodedImage, DecoderPool, DecoderStartError, _Decoder
from schemas.errors import RejectReason, SampleRejected
from scoring.images.prepare import prepare_image
from scoring.images.settings import ImageSettings

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


def decoded_by(
    count: int, files: list[bytes], timeout_seconds: float = 60.0
) -> list[DecodedImage | RejectReason]:
    async def run() -> list[DecodedImage | RejectReason]:
        pool = DecoderPool(SETTINGS, count, timeout_seconds)
        try:
            return await decode_all(pool, files)
        finally:
            await pool.close()

    return asyncio.run(run())


def halt(pool: DecoderPool) -> None:
    """Lets the only process of a pool stand still, so that it hangs at the next image."""
    (process,) = pool.process_ids
    os.kill(process, signal.SIGSTOP)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_pool_gives_what_the_function_gives(count: int) -> None:
    files = [image_file(name, seed) for seed in range(5) for name in FORMATS]
    for data, image in zip(files, decoded_by(count, files), strict=True):
        expected = prepare_image(data, SETTINGS)
        assert isinstance(image, DecodedImage)
        assert (image.encoded, image.pixel_hash) == (expected.encoded, expected.pixel_hash)


def test_answers_go_to_who_asked_while_a_process_is_being_connected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Images that are given to it before and in the moment of its connection keep their order."""
    files = [image_file("JPEG", seed) for seed in range(20)]
    connected = _Decoder.connection_made
    late: list[asyncio.Task[DecodedImage]] = []

    async def run() -> list[DecodedImage]:
        pool = DecoderPool(SETTINGS, 1, 60.0)

        def connected_and_asked(decoder: _Decoder, transport: asyncio.BaseTransport) -> None:
            connected(decoder, transport)
            asked = pool.decode(files[-1], None)
            late.append(asyncio.get_running_loop().create_task(asked))
            decoder._on_free()

        monkeypatch.setattr(_Decoder, "connection_made", connected_and_asked)
        try:
            first = [asyncio.create_task(pool.decode(data, None)) for data in files[:3]]
            found = [await task for task in first]
            return [*found, await late[0], *[await pool.decode(one, None) for one in files[3:]]]
        finally:
            await pool.close()

    asked = [*files[:3], files[-1], *files[3:]]
    for data, image in zip(asked, asyncio.run(run()), strict=True):
        assert image.pixel_hash == prepare_image(data, SETTINGS).pixel_hash


@pytest.mark.slow
def test_large_files_pass_whole_in_both_directions() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    data = file.getvalue()
    settings = ImageSettings(resize_mode="no", image_format="png")

    async def run() -> list[DecodedImage | RejectReason]:
        pool = DecoderPool(settings, 1, 60.0)
        try:
            return await decode_all(pool, [data] * 4)
        finally:
            await pool.close()

    expected = prepare_image(data, settings).encoded
    assert len(expected) > 6_000_000
    for image in asyncio.run(run()):
        assert isinstance(image, DecodedImage)
        assert image.encoded == expected


async def killed(pool: DecoderPool) -> None:
    """Returns when the only process of a pool was killed and the pool knows it."""
    (process,) = pool.process_ids
    os.kill(process, signal.SIGSEGV)
    os.kill(process, signal.SIGCONT)  # one that stands still takes no signal but this
    async with asyncio.timeout(120):
        while pool.process_ids:
            await asyncio.sleep(0.01)


def test_a_decoder_that_dies_with_nothing_in_hand_costs_nothing_and_is_replaced() -> None:
    good = image_file("JPEG")

    async def run() -> list[DecodedImage | RejectReason]:
        pool = DecoderPool(SETTINGS, 1, 60.0)
        try:
            first = await decode_all(pool, [good])
            await killed(pool)
            return first + await decode_all(pool, [good])
        finally:
            await pool.close()

    found = asyncio.run(run())
    assert isinstance(found[0], DecodedImage)
    assert found[0] == found[1]


def test_a_decoder_that_dies_at_an_image_costs_that_one() -> None:
    good = image_file("JPEG")

    async def run() -> list[DecodedImage | RejectReason]:
        pool = DecoderPool(SETTINGS, 1, 60.0)
        try:
            await decode_all(pool, [good])
            halt(pool)
            asked = asyncio.create_task(decode_all(pool, [good] * 21))
            await asyncio.sleep(0.05)
            await killed(pool)
            return await asked
        finally:
            await pool.close()

    found = asyncio.run(run())
    assert found[0] is RejectReason.DECODER_CRASHED
    assert all(isinstance(image, DecodedImage) for image in found[1:])


def slow_image() -> bytes:
    """Returns a file that takes longer to decode than the limit of 0.2 s, which is a hang then."""
    file = io.BytesIO()
    Image.new("RGB", (8000, 8000)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.slow
def test_a_decoder_that_hangs_is_ended_and_replaced() -> None:
    good = image_file("JPEG")
    found = decoded_by(1, [good, slow_image(), good, slow_image(), *[good] * 20], 0.2)
    assert found[1] is found[3] is RejectReason.DECODER_CRASHED
    # On a machine with much else to do a good one may take as long.
    assert sum(isinstance(image, DecodedImage) for image in found[4:]) > 10


def test_a_file_of_the_user_named_like_ours_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pipeline.py").write_text("raise SystemExit('not ours')")
    monkeypatch.chdir(tmp_path)
    assert isinstance(decoded_by(1, [image_file("JPEG")])[0], DecodedImage)


def test_a_decoder_that_cannot_start_stops_the_run_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cv2.py").write_text("raise ImportError('libGL.so.1 is missing')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    with pytest.raises(DecoderStartError, match=r"libGL\.so\.1 is missing"):
        decoded_by(1, [image_file("JPEG")])


def test_a_system_that_starts_no_process_leaves_no_image_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    async def run() -> list[Any]:
        pool = DecoderPool(SETTINGS, 1, 60.0)
        try:
            asked = (pool.decode(image_file("JPEG"), None) for _ in range(40))
            async with asyncio.timeout(120):
                return await asyncio.gather(*asked, return_exceptions=True)
        finally:
            await pool.close()

    monkeypatch.setattr("subprocess.Popen", refuse)
    assert all(isinstance(error, OSError) for error in asyncio.run(run()))


@pytest.mark.slow
def test_a_decoder_that_hangs_at_its_start_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cv2.py").write_text("import time; time.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setattr("pipeline.fetch.decoding.pool.START_SECONDS", 1)
    with pytest.raises(DecoderStartError):
        decoded_by(1, [image_file("JPEG")])


@pytest.mark.parametrize("count", [1, 3])
def test_closing_a_pool_ends_its_processes(count: int) -> None:
    async def run() -> list[int]:
        pool = DecoderPool(SETTINGS, count, 60.0)
        await decode_all(pool, [image_file("JPEG")] * 20)
        processes = pool.process_ids
        await pool.close()
        return processes

    processes = asyncio.run(run())
    assert len(processes) == count
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def test_closing_a_pool_while_its_processes_start_leaves_none() -> None:
    def decoders() -> list[int]:
        found = list[int]()
        for one in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # which a zombie is, too
                if "pipeline.fetch.decoding.process" in one.cmdline():
                    found.append(one.pid)
        return found

    async def run() -> None:
        pool = DecoderPool(SETTINGS, 2, 60.0)
        asked = asyncio.create_task(decode_all(pool, [image_file("JPEG")] * 20))
        async with asyncio.timeout(120):
            while len(decoders()) < 2:
                await asyncio.sleep(0.01)
        asked.cancel()
        await pool.close()

    asyncio.run(run())
    assert decoders() == []


def test_processes_that_are_expected_to_be_needed_are_ready_before_and_end_with_the_pool() -> None:
    async def run() -> tuple[list[int], DecodedImage]:
        pool = DecoderPool(SETTINGS, 3, 60.0)
        try:
            pool.expect(2)
            pool.expect(1)
            async with asyncio.timeout(120):
                while len(pool.process_ids) < 2:
                    await asyncio.sleep(0.01)
            begun = pool.process_ids
            return begun, await pool.decode(image_file("JPEG"), None)
        finally:
            await pool.close()

    begun, image = asyncio.run(run())
    assert len(begun) == 2
    assert image.pixel_hash == prepare_image(image_file("JPEG"), SETTINGS).pixel_hash
    for process in begun:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)
