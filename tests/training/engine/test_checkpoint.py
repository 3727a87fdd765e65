import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import StorageError
from tests.training.test_train import go_back, logged, stage_2
from training.engine import checkpoint
from training.engine.checkpoint import superseded
from training.exchange import export_model
from training.train import train


def folders(root: Path, ages_in_hours: list[float]) -> list[Path]:
    found = []
    for number, age in enumerate(ages_in_hours):
        folder = root / f"step-{number}"
        folder.mkdir()
        os.utime(folder, (1e9 - age * 3600, 1e9 - age * 3600))
        found.append(folder)
    return found


def test_the_newest_are_kept_and_of_older_ones_one_for_so_many_hours(tmp_path: Path) -> None:
    written = folders(tmp_path, [10, 9, 8, 6.5, 2, 1, 0])
    assert superseded(written, 2, 0.0) == written[:5]
    assert superseded(written, 2, 2.0) == [written[1], written[3]]
    assert superseded(written[:1], 2, 0.0) == []


def test_a_kill_while_a_checkpoint_is_removed_leaves_no_half_under_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "step-00000002"
    old.mkdir()
    for name in ("run.json", "state-00000-00000.safetensors"):
        (old / name).touch()

    def killed(folder: Path, **_: object) -> None:
        (folder / "run.json").unlink()
        raise SystemExit

    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr("training.engine.checkpoint.shutil.rmtree", killed)
        checkpoint._remove(old)
    assert not old.exists()
    (tmp_path / ".step-mine").mkdir()
    checkpoint._remove_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".step-mine"]


@pytest.mark.slow
def test_a_checkpoint_of_many_files_is_gone_on_from_as_one_of_a_single_file(
    tiny_parts: dict[str, str],
    conversation_dataset: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = stage_2(tiny_parts, save_every_steps=2, keep_checkpoints=9)
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    monkeypatch.setattr("training.engine.checkpoint.FILE_BYTES", 50_000)
    assert train(config, [conversation_dataset], str(whole))
    go_back(whole, resumed, step=2)
    files = sorted((resumed / "checkpoints" / "step-00000002").glob("*.safetensors"))
    assert len(files) > 3
    sizes = [file.stat().st_size for file in files]
    assert min(sizes[:-1]) >= 50_000
    assert train(config, [conversation_dataset], str(resumed))
    assert logged(resumed, "train/loss") == pytest.approx(logged(whole, "train/loss"), rel=1e-6)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Returns an empty file system in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        pytest.skip(f"this user cannot mount a small disk: {error}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def used(disk: Path) -> int:
    """Returns the bytes that are taken of a file system."""
    found = os.statvfs(disk)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def resize(disk: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow
def test_a_full_disk_leaves_the_checkpoint_before_and_the_run_goes_on_from_it(
    tiny_parts: dict[str, str], conversation_dataset: str, tmp_path: Path, small_disk: Path
) -> None:
    changes: dict[str, Any] = {"save_every_steps": 2, "keep_checkpoints": 9}
    config = stage_2(tiny_parts, **changes)
    whole, run = tmp_path / "whole", small_disk / "run"
    assert train(config, [conversation_dataset], str(whole))
    go_back(whole, run, step=2)
    checkpoint = size_of(run / "checkpoints")
    room = used(small_disk) + checkpoint * 3 // 4
    resize(small_disk, f"{room // 1024}k")
    with pytest.raises(StorageError, match="the one before stays"):
        train(config, [conversation_dataset], str(run))
    assert [path.name for path in (run / "checkpoints").iterdir() if path.is_dir()] == [
        "step-00000002"
    ]
    resize(small_disk, "64m")
    assert train(config, [conversation_dataset], str(run))
    assert logged(run, "train/loss") == pytest.approx(logged(whole, "train/loss"), rel=1e-6)


@pytest.mark.slow
def test_a_disk_that_is_full_at_the_end_leaves_no_half_of_a_model(
    tiny_parts: dict[str, str], conversation_dataset: str, tmp_path: Path, small_disk: Path
) -> None:
    config = stage_2(tiny_parts, max_steps=2)
    whole, run = tmp_path / "whole", small_disk / "run"
    assert train(config, [conversation_dataset], str(whole))
    model = size_of(whole / "model")
    room = used(small_disk) + size_of(whole) - model // 2
    resize(small_disk, f"{room // 1024}k")
    with pytest.raises(StorageError, match=r"model could not be written.* nothing of it is left"):
        train(config, [conversation_dataset], str(run))
    assert not [path for path in run.iterdir() if "model" in path.name]
    assert not (run / "finished.json").exists()
    resize(small_disk, "64m")
    assert train(config, [conversation_dataset], str(run))
    assert size_of(run / "model") == model


@pytest.mark.slow
def test_a_disk_that_is_full_keeps_no_half_of_an_export(
    tiny_parts: dict[str, str], conversation_dataset: str, tmp_path: Path, small_disk: Path
) -> None:
    assert train(stage_2(tiny_parts, max_steps=1), [conversation_dataset], str(tmp_path / "run"))
    model = tmp_path / "run" / "model"
    resize(small_disk, f"{(used(small_disk) + size_of(model) // 2) // 1024}k")
    for form in ("aligngpt", "stage_1"):
        if form == "stage_1":
            resize(small_disk, "8k")
        with pytest.raises(StorageError, match="out could not be written"):
            export_model(str(model), str(small_disk / "out"), form=form, vision_tower="t")
        assert list(small_disk.iterdir()) == []
