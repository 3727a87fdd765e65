import hashlib

import pytest

from pipeline.fetch.decoding.frames import Handling, start_message
from pipeline.fetch.decoding.pool import decoded
from pipeline.fetch.decoding.process import answer, check_hash
from schemas.errors import SampleRejected
from scoring.images.settings import ImageSettings
from tests.datasets import jpeg


def test_the_settings_cross_as_they_are():
    settings = ImageSettings(image_size=48, min_side=3)
    message = start_message(settings, 2.5)
    assert ImageSettings(**message["settings"]) == settings
    assert message["timeout_seconds"] == 2.5


@pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha256", "sha512"])
def test_a_hash_is_that_of_the_bytes_or_the_image_is_rejected(algorithm):
    digest = hashlib.new(algorithm, b"data").hexdigest()
    check_hash(b"data", f"{algorithm}:{digest.upper()}")
    check_hash(b"data", None)
    with pytest.raises(SampleRejected, match=f"{algorithm} is {digest}"):
        check_hash(b"data", f"{algorithm}:0")
    with pytest.raises(SampleRejected, match="unknown algorithm"):
        check_hash(b"data", f"x{algorithm}:{digest}")


def job(handling, **more):
    return {"expected_hash": None, "handling": handling, **more}


def test_what_came_from_the_web_is_encoded_anew_and_what_was_judged_is_kept():
    data = jpeg(3, width=90, height=60)
    settings = ImageSettings(image_size=48)
    fetched, both = answer(data, job(Handling.FETCHED), settings)
    encoded = decoded((dict(fetched), both)).encoded
    assert (fetched["original_width"], min(fetched["width"], fetched["height"])) == (90, 48)
    assert encoded != data
    final, both = answer(data, job(Handling.FINAL), settings)
    kept = decoded((dict(final), both)).encoded
    assert (final["width"], final["height"], kept) == (90, 60, data)
    assert final["sha256"] == hashlib.sha256(data).hexdigest()


def test_a_file_that_is_no_image_is_answered_with_its_reason():
    header, data = answer(b"<html>", job(Handling.FETCHED), ImageSettings())
    assert (header["reason"], data) == ("not_an_image", b"")
