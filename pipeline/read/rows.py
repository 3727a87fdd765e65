"""From what an input file says to a clean pair with its key, or to a reason against it."""

import json
import os.path
import posixpath
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset.captions import stored_captions
from pipeline.dataset.credentials import without_credentials
from pipeline.dataset.deny import DenyLists
from pipeline.read.columns import InputColumns
from pipeline.read.kept import kept_text
from pipeline.read.turns import conversation_text, given_level, images_of_parts, sample_id
from pipeline.read.values import NUL, decoded, excerpt, storable, text_of
from schemas.columns import arrow_schema
from schemas.errors import RejectReason, SampleRejected
from schemas.records import Pair, json_text, pair_key
from schemas.storage import absolute_path, is_local

RAW_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("url", "caption", "conversations", "expected_hash")]
    + [(name, pa.string()) for name in ("reason", "detail", "tar_member", "captions", "more_urls")]
    + [(name, pa.string()) for name in ("sample_id", "given_level", "kept")]
)
"""A row as a format's reader found it; `reason` is set where it could not make it out."""


class RawRow(NamedTuple):
    """One row of `RAW_SCHEMA`."""

    url: str | None = None
    caption: str | None = None
    conversations: str | None = None
    expected_hash: str | None = None
    reason: str | None = None
    detail: str | None = None
    tar_member: str | None = None
    captions: str | None = None
    """Several as JSON, as `stored_captions` makes them; `caption` is then the first."""
    more_urls: str | None = None
    """Those after `url` as a JSON list, where a sample has several images."""
    sample_id: str | None = None
    given_level: str | None = None
    kept: str | None = None
    """The input's own columns that go along, as `kept_text` makes them."""


ROW_SCHEMA = pa.schema(
    [pa.field(field.name, pa.string()) for field in arrow_schema(Pair)]
    + [(name, pa.string()) for name in ("kept", "reason", "detail")]
)
"""A pair with its key, or a rejected row where `reason` is not empty."""

CLEAN_URL = r"^https?://[A-Za-z0-9._-]+(:[0-9]{1,5})?([/?#][^\x00-\x20\x7f]*)?$"
"""What most URLs look like: no credentials, nothing to mend. The others are looked at singly."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
HASH_DIGITS = {"md5": 32, "sha256": 64, "sha512": 128}

NO_TURNS: tuple[Any, ...] = (None, "", b"", [], "[]")
"""What stands under `conversations` in the row of a pair, under `more_urls` where one image is."""

MOST_IMAGES = 100
"""Images that one sample may have: more fit into no language model's sequence."""


def clean_rows(
    raw: pa.Table, source: str, image_folder: str | None, deny: DenyLists | None = None
) -> pa.Table:
    """Returns raw rows as `ROW_SCHEMA`: trimmed, checked, without credentials, with keys.

    Args:
        deny: what rows may not point to; of such, neither address nor text stays.
    """
    url = pc.utf8_trim_whitespace(raw["url"])
    caption = pc.replace_substring(pc.fill_null(raw["caption"], ""), NUL, "")
    caption = pc.utf8_trim_whitespace(caption)
    is_good = pc.and_(pc.is_null(raw["reason"]), pc.not_equal(caption, ""))
    is_good = pc.and_(
        is_good, pc.fill_null(pc.match_substring_regex(url, CLEAN_URL), False)
    ).to_pylist()
    urls, captions = url.to_pylist(), caption.to_pylist()
    reasons, details = raw["reason"].to_pylist(), raw["detail"].to_pylist()
    conversations, more_urls = raw["conversations"].to_pylist(), raw["more_urls"].to_pylist()
    for row, good in enumerate(is_good):
        if reasons[row] or (good and more_urls[row] is None):
            if not good:
                urls[row] = _storable_url(urls[row])
            continue
        try:
            urls[row] = _checked_url(urls[row], conversations[row], image_folder)
            more_urls[row] = _checked_more(more_urls[row], image_folder)
            if not captions[row]:
                raise SampleRejected(RejectReason.MISSING_CAPTION, "the row has no caption")
        except SampleRejected as rejected:
            urls[row], more_urls[row] = _storable_url(urls[row]), None
            reasons[row], details[row] = rejected.reason.value, rejected.detail
    texts = zip(conversations, raw["captions"].to_pylist(), captions, details, strict=True)
    keys = [
        pair_key(_key_url(url, more), next((text for text in found if text), ""))
        for url, more, found in zip(urls, more_urls, texts, strict=True)
    ]
    rows = pa.table(
        {
            "key": keys,
            "url": pa.array(urls, pa.string()),
            "more_urls": pa.array(more_urls, pa.string()),
            "caption": pa.array(captions, pa.string()),
            "captions": raw["captions"],
            "conversations": raw["conversations"],
            "source": pa.repeat(pa.scalar(source), len(keys)),
            "expected_hash": raw["expected_hash"],
            "tar_member": raw["tar_member"],
            "sample_id": raw["sample_id"],
            "given_level": raw["given_level"],
            "kept": raw["kept"],
            "reason": pa.array(reasons, pa.string()),
            "detail": pa.array(details, pa.string()),
        },
        schema=ROW_SCHEMA,
    )
    return rows if deny is None else without_denied(rows, deny)


def without_denied(rows: pa.Table, deny: DenyLists) -> pa.Table:
    """Returns rows of which those that lists deny are rejected, with nothing left but their key."""
    urls = zip(rows["url"].to_pylist(), rows["more_urls"].to_pylist(), strict=True)
    reasons = [
        deny.reason_of_urls((url, *json.loads(more or "[]"))) if url else None for url, more in urls
    ]
    if not any(reasons):
        return rows
    is_denied = pa.array([reason is not None for reason in reasons])
    said = pa.array([reason and reason.value for reason in reasons], pa.string())
    columns = {
        name: rows[name]
        if name in ("key", "source")
        else pc.if_else(is_denied, pa.scalar(None, pa.string()), rows[name])
        for name in ROW_SCHEMA.names
    }
    columns["reason"] = pc.coalesce(said, rows["reason"])
    columns["detail"] = pc.if_else(is_denied, "it is on a deny-list", rows["detail"])
    return pa.table(columns, schema=ROW_SCHEMA)


def _storable_url(url: str | None) -> str | None:
    return None if url is None else without_credentials(url)


def _key_url(url: str | None, more_urls: str | None) -> str:
    """Returns what a pair's key is made of beside its text; no URL holds a line break."""
    if more_urls is None:
        return url or ""
    return "\n".join((url or "", *json.loads(more_urls)))


def _checked_more(more_urls: str | None, folder: str | None) -> str | None:
    """Returns the URLs or paths after the first as they are stored."""
    if more_urls is None:
        return None
    return json_text([_checked_url(url, None, folder) for url in json.loads(more_urls)])


def _checked_url(url: str | None, conversations: str | None, folder: str | None) -> str | None:
    """Returns the URL or path as it is stored; None for a conversation without an image."""
    if not url:
        if conversations is not None:
            return None
        raise SampleRejected(RejectReason.MISSING_URL, "the row has no url")
    if any(ord(character) < 32 or ord(character) == 127 for character in url):
        raise SampleRejected(RejectReason.BAD_URL, "it holds control characters")
    if "://" in url:
        return _checked_address(url)
    if folder is None or url.startswith(("//", "data:")):
        raise SampleRejected(
            RejectReason.BAD_URL, "it is no URL; for paths of images, set read.image_folder"
        )
    return image_path(folder, url)


def _checked_address(url: str) -> str:
    """Returns a URL without credentials; its scheme is left for the fetch stage to judge."""
    url = without_credentials(url)
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise SampleRejected(RejectReason.BAD_URL, str(error)) from error
    if not host and parts.scheme.lower() in ("http", "https"):
        raise SampleRejected(RejectReason.BAD_URL, "it names no host")
    return urlunsplit(parts)


def image_path(folder: str, name: str) -> str:
    """Returns the path of an image below a folder, named from there or, on a disk, from its root.

    Raises:
        SampleRejected: if the name leads out of the folder.
    """
    if not is_local(folder):
        return folder.rstrip("/") + posixpath.normpath("/" + name)
    base = absolute_path(folder)
    joined = os.path.normpath(name if name.startswith("/") else f"{base}/{name}")
    if not joined.startswith(base.rstrip("/") + "/"):
        raise SampleRejected(RejectReason.BAD_URL, "the path leads out of the image folder")
    return joined


def named_hash(name: str, value: Any) -> str | None:
    """Returns a hash as `algorithm:hex`; None if the row gives none.

    Raises:
        SampleRejected: if it is no such hash.
    """
    wanted = HASH_DIGITS[name.lower()]
    if isinstance(value, bytes) and len(value) == wanted // 2:
        value = value.hex()
    digits = (text_of(value, f"its {name}") or "").strip().lower()
    if not digits:
        return None
    if not re.fullmatch(f"[0-9a-f]{{{wanted}}}", digits):
        raise SampleRejected(RejectReason.MALFORMED_ROW, f"its {name} is no hash: {digits[:40]!r}")
    return f"{name.lower()}:{digits}"


def row_or_reason(make: Callable[..., RawRow], found: Any, *more: Any) -> RawRow:
    """Returns the row that `make` makes of what was found, or one that says why it cannot."""
    try:
        return make(found, *more)
    except SampleRejected as rejected:
        return rejected_row(rejected.reason, rejected.detail)
    except (ValueError, RecursionError):
        detail = f"the row cannot be parsed: {excerpt(str(found))}"
        return rejected_row(RejectReason.MALFORMED_ROW, detail)


def rejected_row(reason: RejectReason, detail: str) -> RawRow:
    """Returns a row that says nothing but why it cannot be used."""
    return RawRow(reason=reason.value, detail=detail)


def row_of_record(value: Any, columns: InputColumns, as_captions: bool) -> RawRow:
    """Returns the row that a JSON object or a mapping of columns to values stands for.

    Raises:
        SampleRejected: if a value is of the wrong kind.
    """
    if not isinstance(value, dict):
        raise SampleRejected(
            RejectReason.MALFORMED_ROW, f"the row is no object: {excerpt(str(value))}"
        )
    is_pair = columns.conversations is None or value.get(columns.conversations) in NO_TURNS
    said = None if is_pair else decoded(value[columns.conversations])
    url, *more = _urls(value, columns.url)
    if not is_pair and not url:
        url, *more = _images_of(said)
    expected = next(
        (found for name in columns.hashes if (found := named_hash(name, value.get(name)))), None
    )
    if more and (is_pair or as_captions):
        raise SampleRejected(
            RejectReason.SEVERAL_IMAGES, f"its {columns.url} is a list of {1 + len(more)}"
        )
    if is_pair:
        caption, captions = _captions(value, columns.caption)
        kept = kept_text(value, columns.kept)
        return RawRow(url, caption, None, expected, captions=captions, kept=kept)
    num_images = 1 + len(more) if url else 0
    turns, answer = conversation_text(said, num_images)
    turns, answer = storable(turns), storable(answer)
    return RawRow(
        url,
        answer,
        None if as_captions else turns,
        expected,
        more_urls=json_text(more) if more else None,
        sample_id=sample_id(decoded(value.get("id"))),
        given_level=given_level(value),
        kept=kept_text(value, columns.kept),
    )


def _urls(value: dict[str, Any], column: str | None) -> list[str | None]:
    """Returns where the images are, of text alone [None]."""
    found = value.get(column) if column is not None else None
    if found == []:
        return [None]
    if not isinstance(found, list) or len(found) < 2:
        return [_text(value, column)]
    refuse_too_many(found)
    urls = [_text({"url": url}, "url") for url in found]
    if not all(url and url.strip() for url in urls):
        raise SampleRejected(RejectReason.MISSING_URL, f"an entry of its {column} is empty")
    return [str(url).strip() for url in urls]


def _images_of(turns: Any) -> list[str | None]:
    """Returns where the images are that messages name themselves; [None] where none is."""
    named = images_of_parts(turns)
    refuse_too_many(named)
    return [storable(url) for url in named] or [None]


def refuse_too_many(images: Sequence[Any]) -> None:
    """Raises `SampleRejected` if a sample has more images than any model reads."""
    if len(images) > MOST_IMAGES:
        raise SampleRejected(
            RejectReason.MALFORMED_ROW, f"it has {len(images)} images, more than {MOST_IMAGES}"
        )


def _captions(value: dict[str, Any], column: str | None) -> tuple[str | None, str | None]:
    """Returns the caption, of a list the first, and the list as it is stored if it has several."""
    found = value.get(column) if column is not None else None
    if not isinstance(found, list):
        return _text(value, column), None
    texts = [_text({"caption": text}, "caption") for text in found]
    return stored_captions([text.replace(NUL, "") for text in texts if text])


def _text(value: dict[str, Any], column: str | None) -> str | None:
    found = value.get(column) if column is not None else None
    if isinstance(found, list) and len(found) == 1:
        found = found[0]
    if isinstance(found, list):
        raise SampleRejected(RejectReason.MALFORMED_ROW, f"its {column} is a list of {len(found)}")
    return text_of(found, f"its {column}")
