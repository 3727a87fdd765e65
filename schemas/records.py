"""One frozen record per stage: what is known of a pair when the stage is done."""

import hashlib
import json
from dataclasses import dataclass
from typing import Annotated, Any

import pyarrow as pa

from schemas.columns import Column, KeptColumns, arrow_schema
from schemas.shards import image_member

MORE_IMAGE = pa.struct(
    [
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("original_width", pa.int32()),
        ("original_height", pa.int32()),
        ("sha256", pa.string()),
        ("pixel_hash", pa.string()),
    ]
)
"""What is known of an image after a sample's first one; named as the columns of the first are."""

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
"""Who speaks in a turn of `conversations` (its `from`), and the role in chat templates."""


def json_text(value: Any) -> str:
    """Returns a list as the columns hold it: the same text for the same list."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def pair_key(url: str, text: str) -> str:
    """Returns the pair's identity: 32 hex digits, the same for the same url and text.

    Args:
        url: of several images all urls, a line each.
        text: the caption, or the conversations or several captions where there are some.

    Source: BLAKE2b (RFC 7693) with a digest of 128 bits.
    """
    digest = hashlib.blake2b(digest_size=16)
    digest.update(url.encode("utf-8", "surrogatepass"))
    digest.update(b"\0")
    digest.update(text.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def hash_share(name: str) -> float:
    """Returns a number in [0, 1) that depends on a name alone: what is below a ratio is held out.

    Args:
        name: a sample's (first) url, so that a picture is never on both sides; its key without one.
    """
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2.0**64


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionedImage:
    """An image's address and the text that belongs to it."""

    key: Annotated[str, Column(pa.string(), "128-bit hash of url and text, 32 hex digits")]
    url: Annotated[
        str | None,
        Column(
            pa.string(),
            "where the image is, of several the first: http(s) URL or path; null for text alone",
        ),
    ]
    more_urls: Annotated[
        str | None,
        Column(pa.string(), "where the images after the first are, as a JSON list; null for one"),
    ] = None
    caption: Annotated[
        str,
        Column(
            pa.string(),
            "the text that belongs to the image; of several the first, when packed the best scored",
        ),
    ]
    captions: Annotated[
        str | None,
        Column(pa.string(), "all captions as a JSON list where there are several; null for one"),
    ] = None
    conversations: Annotated[
        str | None,
        Column(pa.string(), "LLaVA's turns as JSON, for instruction samples; null for pairs"),
    ]
    sample_id: Annotated[
        str | None, Column(pa.string(), "LLaVA's `id` of an instruction sample; null without one")
    ] = None
    given_level: Annotated[
        int | None,
        Column(
            pa.int8(),
            "1 to num_levels: the level that the input itself gives, `similarity` + 1; else null",
        ),
    ] = None
    source: Annotated[str, Column(pa.string(), "name of the input file the row came from")]
    expected_hash: Annotated[
        str | None,
        Column(
            pa.string(),
            "hash that the (first) image's downloaded bytes must have, as algorithm:hex",
        ),
    ]
    kept: Annotated[dict[str, Any] | None, KeptColumns()] = None
    """Columns of the input that were asked for, by name; None for none."""

    @property
    def urls(self) -> tuple[str, ...]:
        """Where the images are, in their order; empty for text alone."""
        if self.url is None:
            return ()
        return (self.url, *json.loads(self.more_urls or "[]"))


PAIR_COLUMNS = arrow_schema(CaptionedImage).names
"""What every stage up to scoring knows of a pair, and what a rejection says of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair(CaptionedImage):
    """The two as read, and where the image lies if the input holds it already."""

    tar_member: Annotated[
        str | None,
        Column(
            pa.string(),
            "first byte+length#hash of the header@tar, for images in input tars; null if asked at "
            "the url",
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSample(CaptionedImage):
    """The pair with its image, decoded, resized and encoded."""

    image_format: Annotated[
        str | None, Column(pa.string(), "extension of the image's tar member; null for text alone")
    ]
    width: Annotated[int | None, Column(pa.int32(), "of the stored image, in pixels")]
    height: Annotated[int | None, Column(pa.int32(), "of the stored image, in pixels")]
    original_width: Annotated[int | None, Column(pa.int32(), "as downloaded, upright, in pixels")]
    original_height: Annotated[int | None, Column(pa.int32(), "as downloaded, upright, in pixels")]
    sha256: Annotated[str | None, Column(pa.string(), "of the downloaded bytes, 64 hex digits")]
    pixel_hash: Annotated[
        str | None, Column(pa.string(), "128-bit hash of the stored image's pixels, 32 hex digits")
    ]
    more_images: Annotated[
        list[dict[str, Any]] | None,
        Column(
            pa.list_(MORE_IMAGE),
            "the same of the images after the first, whose format is that of the first; null for "
            "one",
        ),
    ] = None

    @property
    def image_members(self) -> tuple[str, ...]:
        """Names of the images in a shard's tar, in their order; empty for text alone."""
        if self.image_format is None:
            return ()
        count = 1 + len(self.more_images or ())
        return tuple(image_member(self.key, self.image_format, number) for number in range(count))


STORED_COLUMNS = arrow_schema(StoredSample).names
"""What is known of a stored image, here and in the train shards."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchedSample(StoredSample):
    """The same, and what the stages after fetch look at without opening the tar."""

    thumbnail: Annotated[
        bytes | None,
        Column(
            pa.binary(),
            "the (first) image squeezed to a square of 64, 32, 16 or 8 pixels, as JPEG; null for "
            "text alone, and in tables from before there were any",
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredSample:
    """How well the two halves of a pair belong together. Rows stand as in the fetched table."""

    key: Annotated[str, Column(pa.string(), "as in the fetched table")]
    clip_score: Annotated[float, Column(pa.float32(), "cosine of image and caption, in [-1, 1]")]
    caption_index: Annotated[
        int, Column(pa.int32(), "which of several captions scored best, from 0; 0 for one")
    ] = 0
    is_caption_truncated: Annotated[
        bool, Column(pa.bool_(), "whether the caption was longer than the model's context")
    ]
    image_embedding: Annotated[
        list[float] | None, Column(pa.list_(pa.float16()), "unit length; null if not kept")
    ]
    text_embedding: Annotated[
        list[float] | None, Column(pa.list_(pa.float16()), "unit length; null if not kept")
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class UniqueSample:
    """A pair that is no duplicate, or the best scored of its group."""

    key: Annotated[str, Column(pa.string(), "as in the fetched table")]
    clip_score: Annotated[float, Column(pa.float32(), "cosine of image and caption, in [-1, 1]")]
    duplicate_count: Annotated[
        int, Column(pa.int32(), "how many pairs gave way to this one as its duplicates")
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelledSample:
    """A unique pair with its alignment level."""

    key: Annotated[str, Column(pa.string(), "as in the fetched table")]
    clip_score: Annotated[float, Column(pa.float32(), "cosine of image and caption, in [-1, 1]")]
    alignment_level: Annotated[
        int, Column(pa.int8(), "1 (worst aligned) to num_levels (best aligned)")
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecaptionedSample:
    """A levelled pair once a model has written captions for the pictures of the lowest levels."""

    key: Annotated[str, Column(pa.string(), "as in the fetched table")]
    clip_score: Annotated[
        float, Column(pa.float32(), "cosine of image and the caption that is packed, in [-1, 1]")
    ]
    alignment_level: Annotated[
        int, Column(pa.int8(), "of that score, by the edges of the levels as they were cut")
    ]
    is_recaptioned: Annotated[
        bool | None,
        Column(
            pa.bool_(),
            "whether the model's caption is packed in place of the other; null if none was asked "
            "for",
        ),
    ] = None
    original_caption: Annotated[
        str | None,
        Column(
            pa.string(),
            "the caption before, of several the best scored; null if none was asked for",
        ),
    ] = None
    original_score: Annotated[
        float | None, Column(pa.float32(), "its cosine, in [-1, 1]; null if none was asked for")
    ] = None
    original_level: Annotated[
        int | None, Column(pa.int8(), "the level before; null if none was asked for")
    ] = None
    model_caption: Annotated[
        str | None,
        Column(
            pa.string(), "what the model wrote, taken or not; null if it was not asked or is empty"
        ),
    ] = None
    model_score: Annotated[
        float | None,
        Column(pa.float32(), "its cosine, in [-1, 1]; null if it was not asked or was refused"),
    ] = None
    exchanged_score: Annotated[
        float | None,
        Column(
            pa.float32(),
            "cosine with what the model wrote of the next picture of the shard, a control; null "
            "if there is none",
        ),
    ] = None
    model_refused: Annotated[
        str | None,
        Column(
            pa.string(),
            "why what the model wrote is no caption: empty, unfinished, no_text, repeating, "
            "refusal or not_finite; null if it is one",
        ),
    ] = None
    caption_model: Annotated[
        str | None, Column(pa.string(), "name of the model; null if it was not asked")
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSample(StoredSample):
    """A sample to train on: what is known of it, and where its image lies in the tar."""

    clip_score: Annotated[
        float | None, Column(pa.float32(), "cosine of image and caption; null if not scored")
    ]
    alignment_level: Annotated[
        int | None, Column(pa.int8(), "1 (worst) to num_levels (best); null if not levelled")
    ]
    image_offset: Annotated[
        int | None, Column(pa.int64(), "first byte of the image in the shard's tar")
    ]
    image_bytes: Annotated[int | None, Column(pa.int64(), "length of the image in the tar")]
    more_image_offsets: Annotated[
        list[int] | None,
        Column(pa.list_(pa.int64()), "of the images after the first; null for one"),
    ] = None
    more_image_bytes: Annotated[
        list[int] | None,
        Column(pa.list_(pa.int64()), "of the images after the first; null for one"),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """A pair that is not in the dataset, and why."""

    key: Annotated[str, Column(pa.string(), "hash of url and text, as far as they were known")]
    url: Annotated[str | None, Column(pa.string(), "as read, without credentials")]
    caption: Annotated[str | None, Column(pa.string(), "as read")]
    source: Annotated[str | None, Column(pa.string(), "name of the input file")]
    stage: Annotated[str, Column(pa.string(), "the stage that left it out")]
    reason: Annotated[str, Column(pa.string(), "one of the closed list of reasons")]
    is_retryable: Annotated[bool, Column(pa.bool_(), "whether asking again later can help")]
    detail: Annotated[str, Column(pa.string(), "what happened, for people")]
    http_status: Annotated[int | None, Column(pa.int16(), "the last answer's status, if any")]
    kept_key: Annotated[
        str | None, Column(pa.string(), "for duplicates: the pair that stayed in its place")
    ]
    clip_score: Annotated[float | None, Column(pa.float32(), "if it was scored before")]
    kept_cosine: Annotated[
        float | None,
        Column(
            pa.float32(),
            "for duplicates: cosine of its image embedding and that of the pair that stayed",
        ),
    ] = None
    kept_look: Annotated[
        float | None,
        Column(
            pa.float32(),
            "for duplicates: how different the two look, 0 to 255; null without thumbnails",
        ),
    ] = None


PAIR_SCHEMA = arrow_schema(Pair)
FETCHED_SCHEMA = arrow_schema(FetchedSample)
SCORED_SCHEMA = arrow_schema(ScoredSample)
UNIQUE_SCHEMA = arrow_schema(UniqueSample)
LEVELLED_SCHEMA = arrow_schema(LevelledSample)
RECAPTIONED_SCHEMA = arrow_schema(RecaptionedSample)
TRAIN_SCHEMA = arrow_schema(TrainSample)
REJECTION_SCHEMA = arrow_schema(Rejection)

MEMBER_FIELDS = ("status", "error_message")
"""What the `.json` members of a fetched tar hold beside the columns, as img2dataset's do."""

OWN_NAMES = frozenset(
    {*PAIR_SCHEMA.names, *TRAIN_SCHEMA.names, *SCORED_SCHEMA.names, *REJECTION_SCHEMA.names}
    | {*RECAPTIONED_SCHEMA.names}
    | {*MEMBER_FIELDS, "kept", "duplicate_count", "file_row_number", "file_of_row"}
)
"""Names that no column of the input can have in a dataset, in whatever case. The last two are
those by which `browse` finds rows: DuckDB knows the first, ours is the second."""
