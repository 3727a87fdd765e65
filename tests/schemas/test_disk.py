"""Folders that are written whole or not at all, and what a full disk looks like."""

import errno
from pathlib import Path

import pytest

from schemas.disk import is_out_of_room, refusal_in_words, written_whole
from schemas.errors import StorageError


def test_a_folder_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    for text in ("old", "new"):
        with written_whole(folder) as aside:
            aside.mkdir()
            (aside / text).write_text(text)
    assert [path.name for path in folder.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [folder]


def test_where_a_link_stands_its_target_is_written(tmp_path: Path) -> None:
    (tmp_path / "large_disk").mkdir()
    (tmp_path / "model").symlink_to("large_disk")
    with written_whole(tmp_path / "model") as aside:
        aside.mkdir()
        (aside / "new").touch()
    assert (tmp_path / "model").is_symlink()
    assert [path.name for path in (tmp_path / "large_disk").iterdir()] == ["new"]


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), StorageError),
        (
            RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos"),
            StorageError,
        ),
        (ValueError("something else"), ValueError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_what_fails_leaves_nothing_and_the_folder_before(
    error: BaseException, raised: type[BaseException], tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").touch()
    with pytest.raises(raised), written_whole(tmp_path / "model") as aside:
        aside.mkdir()
        (aside / "half").touch()
        raise error
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "old"]


def test_what_the_system_keeps_from_a_user_is_named_with_what_to_do() -> None:
    said = refusal_in_words(PermissionError(errno.EACCES, "Permission denied", "data/x"))
    assert said is not None and said.startswith("data/x: Permission denied. Give this user leave")
    assert refusal_in_words(FileNotFoundError(errno.ENOENT, "no such file", "data/x")) is None


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_known_by_what_the_system_says() -> None:
    with pytest.raises(OSError) as found, Path("/dev/full").open("w") as file:
        file.write("a")
        file.flush()
    assert is_out_of_room(found.value)
    assert not is_out_of_room(FileNotFoundError(errno.ENOENT, "no such file"))
