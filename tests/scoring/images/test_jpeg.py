import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from schemas.errors import RejectReason, SampleRejected
from scoring.images.jpeg import SOS, count_scans, is_complete, is_plain, segments
from scoring.images.prepare import decode, prepare_image, read_header
from scoring.images.settings import ImageSettings

EOI = b"\xff\xd9"
KINDS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "progressive": {"progressive": True},
    "with restarts": {"restart_marker_blocks": 8},
    "without subsampling": {"subsampling": 0},
}


def photograph(**options: Any) -> bytes:
    """Returns a real photograph of 400x300 as a JPEG."""
    image = Image.fromarray(load_sample_images().images[0]).resize((400, 300))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90, **options)
    return file.getvalue()


def outcome(data: bytes) -> str:
    """Returns the hash of the pixels that are stored, or why there are none."""
    try:
        return prepare_image(data, ImageSettings(image_size=128)).pixel_hash
    except SampleRejected as rejected:
        return rejected.reason.value


def before_scan(data: bytes) -> int:
    return next(segment.start for segment in segments(data) if segment.marker == SOS)


HARMLESS = {
    "no end marker": lambda data: data[:-2],
    "half an end marker": lambda data: data[:-1],
    "zeros in place of the end marker": lambda data: data[:-2] + bytes(500),
    "zeros before the end marker": lambda data: data[:-2] + bytes(12) + EOI,
    "many zeros before the end marker": lambda data: data[:-2] + bytes(9000) + EOI,
    "fill bytes before the end marker": lambda data: data[:-2] + b"\xff" * 30 + EOI,
    "bytes after the end marker": lambda data: data + b"<!-- cached by a proxy -->",
    "junk between the segments": lambda data: data[:20] + b"junk" + data[20:],
    "junk before the scan": lambda data: (
        data[: before_scan(data)] + b"\0\1\2" + data[before_scan(data) :]
    ),
    "an unknown version of JFIF": lambda data: data[:11] + b"\x07" + data[12:],
}

HARMFUL = {
    "the last bytes gone": lambda data: data[:-10],
    "the last bytes gone, end marker there": lambda data: data[:-40] + EOI,
    "a tenth gone": lambda data: data[: len(data) * 9 // 10],
    "a tenth gone, end marker there": lambda data: data[: len(data) * 9 // 10] + EOI,
    "zeros in place of the second half, no end marker": lambda data: (
        data[: len(data) // 2] + bytes(len(data) // 2)
    ),
    "zeros in place of the second half": lambda data: (
        data[: len(data) // 2] + bytes(len(data) // 2) + EOI
    ),
    "what may be scan data before the end marker": lambda data: (
        data[:-2] + bytes(range(1, 200)) + EOI
    ),
    "no scan": lambda data: data[: before_scan(data)] + EOI,
    "header alone": lambda data: data[:20],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", HARMLESS)
def test_a_fault_that_costs_no_pixel_is_mended(kind: str, fault: str) -> None:
    whole = photograph(**KINDS[kind])
    broken = HARMLESS[fault](whole)
    assert broken != whole
    assert outcome(broken) == outcome(whole)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", HARMFUL)
def test_missing_or_garbled_scan_data_is_rejected(kind: str, fault: str) -> None:
    assert outcome(HARMFUL[fault](photograph(**KINDS[kind]))) == RejectReason.DECODE_FAILED.value


def test_a_progressive_file_without_its_last_scans_is_rejected_at_every_cut() -> None:
    data = photograph(progressive=True)
    starts = [segment.start for segment in segments(data) if segment.marker == SOS]
    assert len(starts) > 5
    for start in starts:
        assert not is_complete(data[:start])
        assert outcome(data[:start]) == RejectReason.DECODE_FAILED.value
    assert is_complete(data)


def test_a_sequential_scan_with_odd_parameters_is_mended() -> None:
    data = bytearray(photograph())
    scan = next(segment for segment in segments(bytes(data)) if segment.marker == SOS)
    data[scan.data - 3 : scan.data] = b"\0\0\0"
    assert outcome(bytes(data)) == outcome(photograph())


def test_random_bytes_are_never_mended_into_another_picture_without_an_end() -> None:
    generator = np.random.default_rng(0)
    data = photograph()
    for _ in range(40):
        cut = int(generator.integers(before_scan(data) + 20, len(data) - 10))
        tail = generator.integers(0, 256, 60, np.uint8).tobytes()
        assert outcome(data[:cut] + tail) == RejectReason.DECODE_FAILED.value


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, True),
        ({"progressive": True}, True),
        ({"comment": b"made by a program"}, False),
        ({"icc_profile": bytes(200)}, False),
        ({"exif": b"Exif\0\0" + bytes(40)}, False),
    ],
)
def test_a_plain_file_holds_nothing_but_its_picture(options: Any, expected: bool) -> None:
    assert is_plain(photograph(**options)) is expected
    assert not is_plain(photograph(**options) + b"more")
    assert not is_plain(photograph(**options)[:-2])


def test_a_stored_image_stays_as_it_is_where_it_fits_and_holds_nothing_else() -> None:
    plain, marked = photograph(), photograph(comment=b"made by a program")
    settings = ImageSettings(image_size=300)
    assert prepare_image(plain, settings, is_stored=True).encoded == plain
    assert prepare_image(plain, settings).encoded != plain
    assert b"made by" not in prepare_image(marked, settings, is_stored=True).encoded
    smaller = ImageSettings(image_size=128)
    assert prepare_image(plain, smaller, True) == prepare_image(plain, smaller)
    as_png = ImageSettings(image_size=300, image_format="png")
    assert prepare_image(plain, as_png, is_stored=True) == prepare_image(plain, as_png)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "fault",
    # The standard allows fill bytes before a marker (T.81, B.1.1.2): they are no fault.
    [fault for fault in HARMLESS if not fault.startswith("fill bytes")],
)
def test_a_stored_image_that_had_to_be_mended_is_stored_anew(kind: str, fault: str) -> None:
    settings = ImageSettings(image_size=300)
    broken = HARMLESS[fault](photograph(**KINDS[kind]))
    stored = prepare_image(broken, settings, is_stored=True)
    assert stored == prepare_image(broken, settings)
    assert stored.encoded != broken


def test_a_stored_image_of_greys_stays_as_it_is_and_decodes_to_three_colours() -> None:
    file = io.BytesIO()
    Image.fromarray(load_sample_images().images[0]).convert("L").resize((400, 300)).save(
        file, "JPEG"
    )
    data = file.getvalue()
    assert prepare_image(data, ImageSettings(image_size=300), is_stored=True).encoded == data
    pixels, is_sound = decode(data, read_header(data), (400, 300))
    assert (pixels.shape, is_sound) == ((300, 400, 3), True)


@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"\xda", b"\xff\xda", b"\xff\xff\xda\xda\xff\xda\xff"]
)
def test_scans_are_counted_by_their_marker(data: bytes) -> None:
    assert count_scans(data) == data.count(b"\xff\xda")
    assert count_scans(data * 7) == (data * 7).count(b"\xff\xda")
