import os

import fsspec
import pytest

from pipeline.fetch.image_folders import LocalFiles, StoreFiles, is_store
from schemas.errors import RejectReason, SampleRejected


def refusal(files, url):
    with pytest.raises(SampleRejected) as found:
        files.read(url)
    return found.value.reason


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "a.jpg").write_bytes(b"12345")
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    return root


def test_a_file_is_found_however_its_path_is_written(folder):
    files = LocalFiles((str(folder),), max_bytes=5)
    for url in ("sub/a.jpg", "sub\\a.jpg", f"{folder}/sub/a.jpg", f"file://{folder}/sub/a.jpg"):
        assert files.read(url) == b"12345"


def test_nothing_outside_is_read_and_each_refusal_has_its_reason(folder):
    (folder / "link.jpg").symlink_to(folder.parent / "secret.jpg")
    os.mkfifo(folder / "pipe.jpg")
    files = LocalFiles((str(folder),), max_bytes=4)
    assert refusal(files, "../secret.jpg") is RejectReason.FORBIDDEN_ADDRESS
    assert refusal(files, "link.jpg") is RejectReason.FORBIDDEN_ADDRESS
    assert refusal(files, "sub/b.jpg") is RejectReason.FILE_NOT_FOUND
    assert refusal(files, "pipe.jpg") is RejectReason.FILE_NOT_FOUND
    assert refusal(files, "sub") is RejectReason.FILE_NOT_FOUND
    assert refusal(files, "sub/a.jpg") is RejectReason.TOO_MANY_BYTES
    assert refusal(LocalFiles((), 4), "sub/a.jpg") is RejectReason.FORBIDDEN_SCHEME


def test_a_store_is_read_below_its_folder_alone():
    memory = fsspec.filesystem("memory")
    memory.pipe({"/shelf/in/a.jpg": b"12345", "/shelf/secret.jpg": b"secret"})
    files = StoreFiles(("memory://shelf/in", "/a/local/one"), max_bytes=5)
    assert files.holds("memory://shelf/in/a.jpg")
    assert not files.holds("memory://shelf/inner/a.jpg")
    assert files.read("memory://shelf/in/a.jpg") == b"12345"
    assert refusal(files, "memory://shelf/in/b.jpg") is RejectReason.FILE_NOT_FOUND
    for url in ("memory://shelf/in/../secret.jpg", "memory://shelf/in/..\\secret.jpg"):
        assert refusal(files, url) is RejectReason.FORBIDDEN_ADDRESS
    small = StoreFiles(("memory://shelf/in/",), max_bytes=4)
    assert refusal(small, "memory://shelf/in/a.jpg") is RejectReason.TOO_MANY_BYTES


def test_what_is_asked_of_a_server_or_is_local_is_no_store():
    assert is_store("s3://bucket/images")
    assert not any(is_store(folder) for folder in ("/images", "file:///images", "HTTPS://a/b"))
