"""Listings of this machine's folders are those of fsspec, by which they were made before."""

from fsspec.implementations.local import LocalFileSystem

from schemas.local_folders import local_files, local_sizes


def test_names_and_sizes_are_those_that_the_library_of_stores_tells(tmp_path):
    (tmp_path / "b.parquet").write_bytes(b"12345")
    (tmp_path / "a.json").write_bytes(b"")
    (tmp_path / ".hidden").write_bytes(b"1")
    (tmp_path / "within").mkdir()
    (tmp_path / "within" / "c.parquet").write_bytes(b"1")
    (tmp_path / "link.parquet").symlink_to("b.parquet")
    (tmp_path / "broken.parquet").symlink_to("nowhere")
    told = {
        entry["name"].rsplit("/", 1)[-1]: entry["size"]
        for entry in LocalFileSystem().ls(str(tmp_path), detail=True)
    }
    del told[".hidden"]
    sizes = local_sizes(str(tmp_path), "x")
    assert sizes == {f"x/{name}": size for name, size in told.items()}
    assert sizes["x/link.parquet"] == 5
    assert sizes["x/broken.parquet"] == 0
    assert local_files(str(tmp_path), "x", "") == sorted(sizes)
    found = local_files(str(tmp_path), "x", ".parquet")
    assert found == ["x/b.parquet", "x/broken.parquet", "x/link.parquet"]


def test_a_file_and_nothing_hold_no_files(tmp_path):
    (tmp_path / "file").write_bytes(b"1")
    for path in (tmp_path / "file", tmp_path / "nowhere", tmp_path / "file" / "below"):
        assert local_files(str(path), "x", "") == []
        assert local_sizes(str(path), "x") == {}
