"""Files that appear whole or not at all, paths that are good everywhere, a fence around changes."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from schemas.errors import StorageError
from schemas.storage import (
    absolute_path,
    commit_file,
    commit_text,
    exists,
    explaining_writes,
    lies_within,
    list_files,
    move_file,
    open_read,
    read_bytes,
    read_json,
    remove,
    walk_files,
)


@pytest.mark.parametrize(
    ("given", "absolute"),
    [
        ("a/../b.tsv", "/work/b.tsv"),
        ("/x/y", "/x/y"),
        ("file:///x/y/", "/x/y"),
        ("s3://bucket/a", "s3://bucket/a"),
        ("~/a", "/home/me/a"),
    ],
)
def test_a_path_is_made_absolute_and_a_url_stays(monkeypatch, given, absolute):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setattr("os.getcwd", lambda: "/work")
    assert absolute_path(given) == absolute


CHANGES = {
    "commit": "commit_text(folder + '/x', 'late')",
    "remove": "remove(folder + '/x')",
    "move": "move_file(folder + '/x', folder + '/y')",
    "remove_folder": "remove_folder(folder)",
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_check_that_ends_the_process_comes_before_every_change(tmp_path: Path, change: str):
    (tmp_path / "x").write_text("of the next one")
    program = (
        "import os\n"
        "from schemas.storage import *\n"
        f"folder = {str(tmp_path)!r}\n"
        "check_before_changes(lambda: os._exit(7))\n"
        f"{change}\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 7
    assert [path.read_text() for path in tmp_path.glob("[!.]*")] == ["of the next one"]


@pytest.fixture(params=["local", "memory"])
def folder(request, tmp_path):
    return str(tmp_path / "data") if request.param == "local" else f"memory:/{tmp_path}/data"


def test_a_file_appears_whole_or_not_at_all(folder):
    commit_text(f"{folder}/a/b.json", '{"x": 1}')
    assert read_json(f"{folder}/a/b.json") == {"x": 1}
    with pytest.raises(KeyError), commit_file(f"{folder}/a/b.json") as file:
        file.write(b"half")
        raise KeyError
    assert read_json(f"{folder}/a/b.json") == {"x": 1}
    assert walk_files(folder) == [f"{folder}/a/b.json"]


def test_files_are_listed_moved_and_removed(folder):
    for name in ("b.json", "a.json", "c.txt"):
        commit_text(f"{folder}/{name}", name)
    assert list_files(folder, ".json") == [f"{folder}/a.json", f"{folder}/b.json"]
    move_file(f"{folder}/a.json", f"{folder}/c.txt")
    assert read_bytes(f"{folder}/c.txt") == b"a.json"
    assert not exists(f"{folder}/a.json")
    remove(f"{folder}/c.txt")
    assert list_files(folder) == [f"{folder}/b.json"]
    assert list_files(f"{folder}/none") == []


def test_a_file_that_is_not_there_is_said_so(folder):
    with pytest.raises(FileNotFoundError):
        open_read(f"{folder}/none")


def test_a_folder_is_known_however_it_is_spelt(tmp_path):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "in")
    for path in ("in", "in/sub", "in/../in/new", "link/sub", "link/not/there"):
        assert lies_within(f"{tmp_path}/{path}", f"{tmp_path}/in"), path
    for path in ("", "inner", "link/../other"):
        assert not lies_within(f"{tmp_path}/{path}", f"{tmp_path}/in"), path
    assert not lies_within("memory://in", f"{tmp_path}/in")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_that_cannot_be_written_is_said_so(tmp_path: Path):
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="cannot write"):
        commit_text(f"{tmp_path}/a", "")


def test_a_limit_of_a_file_s_size_is_said_in_words(tmp_path: Path):
    said = r"cannot write a: File too large: a limit \(ulimit -f\)"
    with pytest.raises(StorageError, match=said), explaining_writes("a", tmp_path):
        raise OSError(errno.EFBIG, "File too large")
