"""Many small files are read and removed together, and nobody else's with them."""

import threading

import fsspec
import pytest

from schemas.many_files import map_files, read_many, remove_many
from schemas.storage import commit_text, list_files, read_bytes


@pytest.fixture(params=["a disk", "a store"])
def root(request, tmp_path):
    """Returns a folder whose name a store's library would take for a pattern."""
    if request.param == "a disk":
        yield f"{tmp_path}/data[1]"
        return
    yield "memory://many/data[1]"
    fsspec.filesystem("memory").rm("/many", recursive=True)


def test_contents_come_in_the_order_asked_for_and_none_for_what_is_gone(root, monkeypatch):
    monkeypatch.setattr("schemas.many_files.AT_ONCE", 2)
    for name in "cab":
        commit_text(f"{root}/{name}.json", name)
    paths = [f"{root}/{name}.json" for name in ("c", "gone", "a", "b", "lost")]
    assert list(read_many(paths)) == [b"c", None, b"a", b"b", None]
    assert list(read_many([])) == []


def test_what_is_named_is_removed_and_nothing_that_looks_like_it(root, monkeypatch):
    monkeypatch.setattr("schemas.many_files.REMOVED_IN_TURN", 2)
    other = root.replace("[1]", "1")
    for folder in (root, other):
        for name in ("1.json", "2.json", "3.json"):
            commit_text(f"{folder}/{name}", "")
    remove_many([f"{root}/1.json", f"{root}/3.json", f"{root}/gone.json"])
    assert [path.rsplit("/", 1)[-1] for path in list_files(root)] == ["2.json"]
    assert len(list_files(other)) == 3


def test_a_store_is_asked_for_many_at_once(monkeypatch):
    removed = []
    store = fsspec.filesystem("memory")
    for number in range(3):
        commit_text(f"memory://together/{number}.json", "")
    monkeypatch.setattr(type(store), "rm", lambda self, names: removed.append(names))
    remove_many([f"memory://together/{number}.json" for number in range(3)])
    monkeypatch.undo()
    assert removed == [[f"/together/{number}.json" for number in range(3)]]
    store.rm("/together", recursive=True)


def test_what_is_read_of_each_file_comes_in_order_and_an_error_ends_it(root):
    paths = [f"{root}/{number}.txt" for number in range(70)]
    for number, path in enumerate(paths):
        commit_text(path, str(number))
    assert list(map_files(read_bytes, paths)) == [str(number).encode() for number in range(70)]
    assert list(map_files(read_bytes, [])) == []
    found = map_files(read_bytes, [*paths[:3], f"{root}/gone", *paths[3:]])
    assert [next(found) for _ in range(3)] == [b"0", b"1", b"2"]
    with pytest.raises(FileNotFoundError):
        next(found)


def test_files_of_a_store_are_read_several_at_the_same_time():
    begun = threading.Barrier(4, timeout=60)

    def read(path):
        begun.wait()
        return path

    paths = [f"memory://together/{number}" for number in range(4)]
    assert list(map_files(read, paths)) == paths
