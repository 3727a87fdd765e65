"""Which columns of an input hold what: as configured, or found by their usual names."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from pipeline.config import ReadConfig
from schemas.errors import ConfigError

URL_NAMES = ("url", "image_url", "img_url", "image_link", "link", "src", "uri")
PATH_NAMES = ("image", "images", "image_path", "file_name", "filename", "path", "file")
CAPTION_NAMES = (
    "caption",
    "captions",
    "text",
    "alt",
    "alt_text",
    "top_caption",
    "description",
    "title",
)
"""The first that is there; each may hold a list of captions, of which the best scored counts."""
INSTRUCTION_NAMES = ("id", "similarity")
"""What instruction samples may have beside their conversations."""
CONVERSATION_NAMES = ("conversations", "messages")
"""LLaVA's name, and that of newer tools."""
HASH_NAMES = ("sha256", "sha512", "md5")


@dataclass(frozen=True, slots=True, kw_only=True)
class InputColumns:
    """Which columns of a file hold what; None where there is no such column."""

    url: str | None
    caption: str | None
    conversations: str | None
    hashes: tuple[str, ...]
    unread_hashes: tuple[str, ...] = ()
    """Columns named as hashes that nobody asked to verify."""
    kept: tuple[tuple[str, str], ...] = ()
    """Name here and name in the dataset of each column that goes along as it is."""


URL_LIST_COLUMNS = InputColumns(url="url", caption="caption", conversations=None, hashes=())


def map_columns(path: str, found: list[str], config: ReadConfig, is_certain: bool) -> InputColumns:
    """Returns which of the columns found in a file hold what.

    Args:
        is_certain: whether `found` are names for sure, the file's own or those given for it.

    Raises:
        ConfigError: if there is none for the URL or for the caption.
    """
    columns = usual_columns(found, config)
    kept = [name for name, _ in columns.kept]
    for name in (columns.url, columns.caption, columns.conversations, *columns.hashes, *kept):
        if name is not None and found.count(name) > 1:
            raise ConfigError(
                f"{path} has {found.count(name)} columns of the name {name!r}, so that it is not "
                "said which one counts: rename or drop the others"
            )
    if columns.conversations is None:
        for column, flag in ((columns.url, "url_column"), (columns.caption, "caption_column")):
            if column is None and not found:
                raise ConfigError(f"{path} is empty: it has neither columns nor rows")
            if column is None:
                hint = "" if is_certain else ", or read.column_names if the file has no header line"
                raise ConfigError(
                    f"{path} has no column {getattr(config, flag)!r}: it has "
                    f"{', '.join(found)}; set read.{flag} to one of them{hint}"
                )
    return columns


def columns_of_record(value: Any, file: InputColumns, config: ReadConfig) -> InputColumns:
    """Returns which fields of a JSON record hold what.

    Records need not have the same fields: what the first ones of a file lack, a later one can have.

    Args:
        file: what holds what in the first records, and counts where this one has it.
    """
    if not isinstance(value, dict):
        return file
    if config.keep_columns:
        file = replace(file, kept=kept_columns(value, config))
    if _has_all(value, file):
        return file
    has_paths = file.conversations is not None
    own = usual_columns([n for n, v in value.items() if v is not None], config, has_paths)
    return InputColumns(
        url=_present(file.url, value) or own.url,
        caption=_present(file.caption, value) or own.caption,
        conversations=_present(file.conversations, value) or own.conversations,
        hashes=file.hashes or own.hashes,
        kept=file.kept,
    )


def _has_all(value: dict[str, Any], file: InputColumns) -> bool:
    """Returns whether a record has all that the first ones had, and no conversation beside."""
    names = (file.url, file.conversations or file.caption)
    if any(name is None or value.get(name) is None for name in names):
        return False
    return file.conversations is not None or not any(n in value for n in CONVERSATION_NAMES)


def _present(name: str | None, value: dict[str, Any]) -> str | None:
    return name if name is not None and value.get(name) is not None else None


def usual_columns(
    found: Collection[str], config: ReadConfig, has_paths: bool = False
) -> InputColumns:
    """Returns which of some columns hold what, None for what none of them holds.

    Args:
        has_paths: whether images are named by paths, as beside conversations.
    """
    conversations = _find(found, CONVERSATION_NAMES)
    names: tuple[str, ...] = URL_NAMES
    if conversations is not None or config.image_folder is not None or has_paths:
        names = URL_NAMES + PATH_NAMES
    return InputColumns(
        url=_find(found, _wanted(config.url_column, "url", names)),
        caption=_find(found, _wanted(config.caption_column, "caption", CAPTION_NAMES)),
        conversations=conversations,
        hashes=hash_columns(found) if config.verify_hashes else (),
        unread_hashes=() if config.verify_hashes else hash_columns(found),
        kept=kept_columns(found, config),
    )


def kept_columns(found: Collection[str], config: ReadConfig) -> tuple[tuple[str, str], ...]:
    """Returns the names here and in the dataset of those columns that are to be kept."""
    pairs = ((_find(found, (name,)), new) for name, new in config.kept_names)
    return tuple((column, new) for column, new in pairs if column is not None)


def hash_columns(found: Collection[str]) -> tuple[str, ...]:
    """Returns the columns that are named as hashes of the image's bytes."""
    return tuple(name for want in HASH_NAMES if (name := _find(found, (want,))))


def _wanted(configured: str, default: str, usual: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the names to look for: what was asked for, or else what is usual."""
    return usual if configured == default else (configured,)


def _find(found: Collection[str], wanted: tuple[str, ...]) -> str | None:
    """Returns the first column found of the wanted names, exactly so or in other case."""
    for name in wanted:
        if name in found:
            return name
    for name in wanted:
        for column in found:
            if column.strip().lower() == name.lower():
                return column
    return None
