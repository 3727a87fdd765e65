"""How a disk shows that takes no more, or not from us, and folders that are written whole."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from schemas.errors import StorageError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
NO_ROOM_WORDS = ("no space left", "quota exceeded", "file too large", "inline_container")
"""As libraries say it that raise errors of their own (safetensors, tokenizers, torch.save)."""


def is_out_of_room(error: BaseException) -> bool:
    """Returns whether a disk that is full, or takes no more, is behind an error."""
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return True
    return any(words in str(error).lower() for words in NO_ROOM_WORDS)


def refusal_in_words(error: BaseException) -> str | None:
    """Returns what to say where the system keeps a file or folder from this user; else None."""
    if not isinstance(error, PermissionError) or error.filename is None:
        return None
    return f"{error.filename}: {error.strerror}. Give this user leave to it, or name another place"


def aside_of(folder: Path) -> Path:
    """Returns where `written_whole` writes what is to become a folder; a link's target counts."""
    real = folder.resolve()
    return real.with_name(f".{real.name}.tmp")


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """Yields a folder to write to, which takes the place of `folder` once the block is through.

    Nothing is left of it if the block fails.

    Raises:
        StorageError: if the disk takes no more.
    """
    aside, folder = aside_of(folder), folder.resolve()
    shutil.rmtree(aside, ignore_errors=True)
    is_whole = False
    try:
        yield aside
        if folder.exists():
            shutil.rmtree(folder)
        aside.replace(folder)
        is_whole = True
    except BaseException as error:
        if not is_out_of_room(error):
            raise
        raise StorageError(
            f"{folder} could not be written ({error}), and nothing of it is left: make room, or "
            "choose another disk, and run the same command again"
        ) from error
    finally:
        if not is_whole:
            shutil.rmtree(aside, ignore_errors=True)
