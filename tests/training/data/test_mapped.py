import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import ConfigError, StorageError
from training.data.mapped import MappedFolders, map_array, stable_order, write_array

WRITER = """
import sys
from pathlib import Path
from training.data.mapped import MappedFolders

def write(folder):
    (folder / "numbers").write_bytes(b"half")
    print("writing", flush=True)
    sys.stdin.readline()
    (folder / "numbers").write_bytes(b"written by the other")

MappedFolders(Path(sys.argv[1]), 0).opened("name", write, lambda folder: None, rows=1)
"""


def write_numbers(folder: Path) -> None:
    write_array(folder / "numbers", [np.arange(3), np.arange(3, 5)])


def opened(root: Path | None, name: str = "name", num_bytes: int = 0) -> list[int]:
    def read(folder: Path) -> list[int]:
        return map_array(folder / "numbers", np.int64).tolist()

    folders = MappedFolders(root, held_rows=0)
    return folders.opened(name, write_numbers, read, rows=1, num_bytes=num_bytes)


def test_a_folder_is_written_once_and_mapped_from_then_on(tmp_path: Path) -> None:
    assert opened(tmp_path / "rows") == [0, 1, 2, 3, 4]
    written = (tmp_path / "rows" / "name" / "numbers").stat()
    assert opened(tmp_path / "rows") == [0, 1, 2, 3, 4]
    assert (tmp_path / "rows" / "name" / "numbers").stat() == written


def test_without_a_root_what_is_mapped_outlives_its_folder() -> None:
    seen: list[Path] = []

    def read(folder: Path) -> np.ndarray:
        seen.append(folder)
        return map_array(folder / "numbers", np.int64)

    numbers = MappedFolders().opened("name", write_numbers, read, rows=10**9)
    assert not seen[0].exists()
    assert numbers.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("is_killed", [False, True])
def test_who_comes_second_waits_for_who_writes_and_writes_if_that_one_dies(
    tmp_path: Path, is_killed: bool
) -> None:
    words = [sys.executable, "-c", WRITER, str(tmp_path)]
    found: list[bytes] = []

    def read(folder: Path) -> bytes:
        return (folder / "numbers").read_bytes()

    def open_too() -> None:
        folders = MappedFolders(tmp_path, 0)
        found.append(folders.opened("name", write_numbers, read, rows=1))

    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout.readline() == b"writing\n"
        second = threading.Thread(target=open_too)
        second.start()
        if is_killed:
            writer.send_signal(signal.SIGKILL)
        else:
            writer.stdin.write(b"\n")
            writer.stdin.flush()
        second.join(timeout=120)
    own = np.arange(5).tobytes()
    assert found == [own if is_killed else b"written by the other"]


def test_what_is_not_whole_is_written_anew(tmp_path: Path) -> None:
    opened(tmp_path)
    (tmp_path / "name" / "numbers").write_bytes(b"half")
    assert opened(tmp_path) == [0, 1, 2, 3, 4]


def test_what_no_run_wrote_is_neither_read_nor_touched_nor_removed(tmp_path: Path) -> None:
    (tmp_path / "name").mkdir()
    write_numbers(tmp_path / "name")
    with pytest.raises(
        ConfigError, match=r"name stands where .* no run wrote it.*--data.rows-fold"
    ):
        opened(tmp_path)
    opened(tmp_path, "other")
    MappedFolders(tmp_path).remove()
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["name"]
    assert (tmp_path / "name" / "numbers").exists()


def test_what_runs_before_left_is_removed_and_the_root_when_nothing_is_left(
    tmp_path: Path,
) -> None:
    root = tmp_path / "rows"
    opened(root, "old")
    (root / ".half.tmp").mkdir()
    (root / ".half.tmp" / "contents.json").write_text(json.dumps({}))
    folders = MappedFolders(root, held_rows=0)
    folders.opened("new", write_numbers, lambda folder: None, rows=1)
    folders.remove_others()
    assert [path.name for path in root.iterdir() if path.is_dir()] == ["new"]
    folders.remove()
    assert not root.exists()


def test_room_is_looked_for_before(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"need about 1,000,000,000\.0 GB in .*, where .* free"):
        opened(tmp_path, num_bytes=10**18)
    assert not (tmp_path / "name").exists()


def test_a_full_disk_leaves_nothing_and_says_so(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        write_numbers(folder)
        write_array(Path("/dev/full"), [np.arange(100_000)])

    for root in (tmp_path, None):
        with pytest.raises(StorageError, match=r"could not be written .*make room"):
            MappedFolders(root, 0).opened("name", write, lambda folder: None, rows=1)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


def test_a_root_that_cannot_be_made_is_an_error_that_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot be written .*--data.rows-folder"):
        opened(tmp_path / "file" / "rows")


@given(
    values=st.lists(st.integers(0, 40), min_size=1, max_size=300),
    at_once=st.integers(1, 50),
)
def test_many_are_sorted_a_part_at_a_time_as_all_at_once(values: list[int], at_once: int) -> None:
    array = np.array(values)
    found = np.concatenate(list(stable_order(array, at_once)))
    assert found.tolist() == np.argsort(array, kind="stable").tolist()
