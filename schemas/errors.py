"""Why a sample is not in the dataset, and why a run does not start."""

import math
import re
from collections.abc import Iterable
from enum import Enum

from schemas.stages import Stage


class RejectReason(Enum):
    """The closed list of reasons for which a pair is left out.

    Each member knows the stage that decides it and whether asking again later can help.
    """

    stage: Stage
    is_retryable: bool

    MALFORMED_ROW = ("malformed_row", Stage.READ, False)
    MISSING_URL = ("missing_url", Stage.READ, False)
    MISSING_IMAGE = ("missing_image", Stage.READ, False)
    MISSING_CAPTION = ("missing_caption", Stage.READ, False)
    BAD_URL = ("bad_url", Stage.READ, False)
    DUPLICATE_ROW = ("duplicate_row", Stage.READ, False)
    SEVERAL_IMAGES = ("several_images", Stage.READ, False)
    UNTRAINABLE_CONVERSATION = ("untrainable_conversation", Stage.READ, False)
    IMAGE_COUNT_MISMATCH = ("image_count_mismatch", Stage.READ, False)
    DENIED_URL = ("denied_url", Stage.READ, False)
    DENIED_HOST = ("denied_host", Stage.READ, False)

    INVALID_URL = ("invalid_url", Stage.FETCH, False)
    FORBIDDEN_SCHEME = ("forbidden_scheme", Stage.FETCH, False)
    FORBIDDEN_PORT = ("forbidden_port", Stage.FETCH, False)
    FORBIDDEN_ADDRESS = ("forbidden_address", Stage.FETCH, False)
    DNS_FAILED = ("dns_failed", Stage.FETCH, True)
    CONNECT_FAILED = ("connect_failed", Stage.FETCH, True)
    TLS_FAILED = ("tls_failed", Stage.FETCH, False)
    TIMED_OUT = ("timed_out", Stage.FETCH, True)
    HOST_UNAVAILABLE = ("host_unavailable", Stage.FETCH, True)
    RATE_LIMITED = ("rate_limited", Stage.FETCH, True)
    SERVER_ERROR = ("server_error", Stage.FETCH, True)
    HTTP_STATUS = ("http_status", Stage.FETCH, False)
    BAD_REDIRECT = ("bad_redirect", Stage.FETCH, False)
    BAD_RESPONSE = ("bad_response", Stage.FETCH, False)
    INCOMPLETE_RESPONSE = ("incomplete_response", Stage.FETCH, True)
    TOO_MANY_BYTES = ("too_many_bytes", Stage.FETCH, False)
    ROBOTS_DISALLOWED = ("robots_disallowed", Stage.FETCH, False)
    ROBOTS_UNREACHABLE = ("robots_unreachable", Stage.FETCH, True)
    OPTED_OUT_BY_HEADER = ("opted_out_by_header", Stage.FETCH, False)
    TDM_RESERVED = ("tdm_reserved", Stage.FETCH, False)
    FILE_NOT_FOUND = ("file_not_found", Stage.FETCH, False)
    HASH_MISMATCH = ("hash_mismatch", Stage.FETCH, False)
    DENIED_REDIRECT = ("denied_redirect", Stage.FETCH, False)
    DENIED_HASH = ("denied_hash", Stage.FETCH, False)
    BAD_BOXES = ("bad_boxes", Stage.FETCH, False)
    NOT_AN_IMAGE = ("not_an_image", Stage.FETCH, False)
    DECODE_FAILED = ("decode_failed", Stage.FETCH, False)
    DECODER_CRASHED = ("decoder_crashed", Stage.FETCH, False)
    TOO_MANY_PIXELS = ("too_many_pixels", Stage.FETCH, False)
    TOO_MANY_FRAMES = ("too_many_frames", Stage.FETCH, False)
    TOO_SMALL = ("too_small", Stage.FETCH, False)
    TOO_ELONGATED = ("too_elongated", Stage.FETCH, False)

    SCORE_NOT_FINITE = ("score_not_finite", Stage.SCORE, False)

    EXACT_DUPLICATE = ("exact_duplicate", Stage.DEDUPLICATE, False)
    NEAR_DUPLICATE = ("near_duplicate", Stage.DEDUPLICATE, False)

    NOT_TO_KEEP = ("not_to_keep", Stage.LEVEL, False)
    BELOW_MINIMUM_SCORE = ("below_minimum_score", Stage.LEVEL, False)
    BELOW_TOP_FRACTION = ("below_top_fraction", Stage.LEVEL, False)

    def __new__(
        cls, name: str, stage: Stage = Stage.READ, is_retryable: bool = False
    ) -> "RejectReason":
        """Returns the member whose value is its name on disk."""
        member = object.__new__(cls)
        member._value_ = name
        member.stage = stage
        member.is_retryable = is_retryable
        return member


OBJECT_ADDRESS = re.compile(r" at 0x[0-9A-Fa-f]+")
"""What Python's own names of objects end in: another one in each run."""


class SampleRejected(Exception):
    """This sample is unusable; the run is fine. Its detail is the same text in each run."""

    def __init__(self, reason: RejectReason, detail: str, http_status: int | None = None) -> None:
        detail = OBJECT_ADDRESS.sub("", detail)
        super().__init__(reason, detail, http_status)
        self.reason = reason
        self.detail = detail
        self.http_status = http_status


class ConfigError(Exception):
    """This run cannot start: the message says what, its value, what is allowed, what to do."""


def require_at_least(least: int, settings: object, names: Iterable[str], section: str = "") -> None:
    """Raises `ConfigError` for the first setting of these that is less.

    Args:
        settings: that have them.
        section: that stands before their names on the command line, with its dot.
    """
    for name in names:
        value = getattr(settings, name)
        if not least <= value < math.inf:
            raise ConfigError(f"{section}{name} must be at least {least}, got {value}")


def require_positive(settings: object, names: Iterable[str], section: str = "") -> None:
    """Raises `ConfigError` for the first setting of these that is no number above 0.

    Args:
        settings: that have them.
        section: that stands before their names on the command line, with its dot.
    """
    for name in names:
        value = getattr(settings, name)
        if not 0 < value < math.inf:
            raise ConfigError(f"{section}{name} must be a positive number, got {value}")


class DatasetError(Exception):
    """What lies on disk is not the dataset that was expected; the message says what to do."""


class StorageError(Exception):
    """A file could not be written: the message says which, what stands in the way, what to do."""


class LossNotFinite(Exception):
    """The loss or its gradient became infinite or NaN; the message names the step's samples."""


class PeerLost(Exception):
    """Another process of this run is gone; the message says which, and what to do."""
