"""A disk that is full or not to be written to: a clear error, and the same bytes once mended."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from pipeline.job.failures import JobFailed
from schemas.errors import ConfigError, StorageError
from schemas.storage import commit_file, commit_text
from tests.curations import contents, curate, finish, start_command


def slow(value: object) -> ParameterSet:
    return pytest.param(value, marks=pytest.mark.slow)


class Disk:
    """A file system in memory, of a size of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.is_mounted = True

    def run(self, *words: str) -> None:
        subprocess.run([*words, str(self.folder)], check=True, capture_output=True)

    def resize(self, kilobytes: int) -> None:
        self.run("mount", "-o", f"remount,size={kilobytes}k")

    def unmount(self) -> None:
        if self.is_mounted:
            self.run("umount", "-l")
            self.is_mounted = False


@pytest.fixture
def new_disk(tmp_path: Path) -> Iterator[Callable[..., Disk]]:
    """Returns what mounts a new disk of so many kilobytes."""
    mounted: list[Disk] = []

    def mount(folder: Path, kilobytes: int, options: str = "rw") -> Disk:
        folder.mkdir(parents=True, exist_ok=True)
        disk = Disk(folder)
        try:
            disk.run("mount", "-t", "tmpfs", "-o", f"size={kilobytes}k,{options}", "tmpfs")
        except (subprocess.CalledProcessError, FileNotFoundError) as error:
            pytest.skip(f"this user cannot mount a small disk: {error}")
        mounted.append(disk)
        return disk

    yield mount
    for disk in reversed(mounted):
        disk.unmount()


def used_kilobytes(root: Path) -> int:
    """Returns the room that a dataset takes, in pages of a disk in memory."""
    sizes = [path.stat().st_size for path in root.rglob("*") if path.is_file()]
    return sum(-(-size // 4096) * 4 for size in sizes)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.4, 0.15, 0.6, 0.8, 0.95])
def test_a_job_on_a_full_disk_says_so_and_goes_on_once_there_is_room(
    config, pairs, curated, new_disk, tmp_path: Path, share: float
) -> None:
    needed = used_kilobytes(curated[0])
    disk = new_disk(tmp_path / "disk", int(share * needed))
    root = disk.folder / "out"
    with pytest.raises((StorageError, ConfigError)) as failed:
        curate(config, pairs, root)
    said = str(failed.value)
    assert f"cannot write {root}" in said
    assert "No space left on device" in said
    assert "MB free on the disk of" in said
    assert "Make room there" in said
    disk.resize(2 * needed)
    manifest, _ = curate(config, pairs, root)
    assert manifest == curated[1]
    assert contents(root) == contents(curated[0])
    assert not list(root.rglob("*.tmp"))


def test_a_disk_without_any_room_is_refused_before_any_work(
    config, pairs, new_disk, tmp_path: Path
) -> None:
    disk = new_disk(tmp_path / "disk", 4)
    (disk.folder / "other").write_bytes(bytes(4096))
    with pytest.raises(ConfigError, match=r"No space left on device \(0\.0 MB of 0\.0 MB free"):
        curate(config, pairs, disk.folder / "out")


@pytest.mark.slow
def test_the_command_on_a_full_disk_ends_with_status_1_and_one_message(
    flags, pairs, curated, new_disk, tmp_path: Path
) -> None:
    needed = used_kilobytes(curated[0])
    disk = new_disk(tmp_path / "disk", needed // 2)
    root = disk.folder / "out"
    status, said = finish(start_command(flags, pairs, root, workers=2))
    assert status == 1, said
    assert f"error: cannot write {root}" in said
    assert "run the same command again to go on" in said
    assert "Traceback" not in said
    disk.resize(2 * needed)
    status, said = finish(start_command(flags, pairs, root, workers=1))
    assert status == 0, said
    assert contents(root) == contents(curated[0])


@pytest.mark.slow
def test_a_disk_that_is_mounted_for_reading_only_is_refused_before_any_work(
    config, pairs, curated, new_disk, tmp_path: Path
) -> None:
    root = tmp_path / "disk" / "out"
    disk = new_disk(tmp_path / "disk", 8192)
    disk.run("mount", "-o", "remount,ro")
    with pytest.raises(ConfigError, match=f"cannot write to {root}: Read-only file system"):
        curate(config, pairs, root)
    disk.run("mount", "-o", "remount,rw")
    curate(config, pairs, root)
    assert contents(root) == contents(curated[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "folder", ["unique", *(slow(folder) for folder in ("fetched", "train", "rejected/level"))]
)
def test_a_folder_that_cannot_be_written_to_stops_the_stage_and_a_rerun_goes_on(
    config, pairs, curated, new_disk, tmp_path: Path, folder: str
) -> None:
    root = tmp_path / "out"
    disk = new_disk(root / folder, 64, "ro")
    with pytest.raises(StorageError) as failed:
        curate(config, pairs, root)
    said = str(failed.value)
    assert f"cannot write {root}/{folder}/" in said
    assert "Read-only file system" in said
    assert "mount the disk for writing" in said
    disk.unmount()
    new_disk(root / folder, 8192)
    curate(config, pairs, root)
    assert contents(root) == contents(curated[0])


@pytest.mark.slow
def test_a_full_disk_of_temporary_files_is_named_with_the_remedy(
    config, pairs, new_disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = new_disk(tmp_path / "temporary", 4)
    monkeypatch.setattr("tempfile.tempdir", str(disk.folder))
    monkeypatch.setattr("pipeline.fetch.shard.SPOOL_MEMORY_BYTES", 1000)
    with pytest.raises(JobFailed, match=r"in stage fetch .* set TMPDIR to another folder"):
        curate(config, pairs, tmp_path / "out")


def test_what_stood_there_stays_when_its_successor_does_not_fit(new_disk, tmp_path: Path) -> None:
    disk = new_disk(tmp_path / "disk", 64)
    path = str(disk.folder / "file")
    commit_text(path, "old")
    with pytest.raises(StorageError, match="No space left on device"), commit_file(path) as file:
        file.write(os.urandom(200_000))
    assert [entry.name for entry in disk.folder.iterdir()] == ["file"]
    assert (disk.folder / "file").read_text() == "old"


def test_an_error_that_is_not_of_the_disk_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), commit_file(str(tmp_path / "new" / "file")):
        raise PermissionError(13, "not ours", str(tmp_path / "elsewhere"))
