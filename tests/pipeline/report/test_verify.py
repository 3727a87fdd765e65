import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.cli import run
from pipeline.report import verify
from pipeline.report.verify import verify_dataset
from schemas.errors import ConfigError, DatasetError
from tests.corruptions import (
    Corruption,
    check_found,
    edit_json,
    flip_in_picture,
    longer_shard,
    put,
    record,
    swap_shards,
)
from tests.datasets import finish


def repeat_shard(root: Path) -> None:
    for kind in ("tar", "parquet"):
        first = (root / "train" / f"000000.{kind}").read_bytes()
        (root / "train" / f"000001.{kind}").write_bytes(first)
    record(root, 1)


CORRUPTIONS: dict[str, Corruption] = {
    "two shards swapped": (swap_shards, r"train/000000\.parquet has \d+ bytes"),
    "a shard that stands twice": (
        repeat_shard,
        r"train/000001\.parquet: key [0-9a-f]{32} stands in the dataset twice",
    ),
    "an index of another packing": (
        lambda root: edit_json(
            root / "train" / "index.json", lambda values: put(values["shardlist"], 1, nsamples=16)
        ),
        r"train/index\.json row 1: \('000001\.tar', 16,",
    ),
    "a stranger among the shards": (longer_shard, r"train/000003\.tar is not in the manifest"),
}

SEEN_BY_HASHES = {
    "two shards swapped",
    "an index of another packing",
    "a stranger among the shards",
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_is_found_and_named(name, whole, tmp_path):
    check_found(whole, tmp_path, CORRUPTIONS[name], name in SEEN_BY_HASHES)


def test_the_command_ends_with_0_for_what_is_whole_and_1_for_what_is_not(whole, tmp_path, capsys):
    assert run(["verify", str(whole)]) == 0
    assert "every sample agrees with its row" in " ".join(capsys.readouterr().out.split())
    assert run(["verify", "--quick", str(whole)]) == 0
    root = tmp_path / "data"
    shutil.copytree(whole, root)
    swap_shards(root)
    assert run(["verify", "--quick", str(root)]) == 1
    said = capsys.readouterr().err
    assert said.count("bytes with SHA-256") == 4


def test_a_stale_manifest_is_found(whole, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(whole, root)
    manifest = (root / "manifest.json").read_bytes()
    shutil.rmtree(root / "train")
    finish(root, samples_per_shard=10)
    (root / "manifest.json").write_bytes(manifest)
    with pytest.raises(DatasetError, match=r"train/000003\.parquet is not in the manifest"):
        verify_dataset(str(root))


def test_a_large_dataset_is_checked_by_a_process_for_each_core(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(verify, "PROCESS_BYTES", 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    shutil.copytree(whole, tmp_path / "data")
    flip_in_picture(tmp_path / "data")
    with pytest.raises(DatasetError, match=r"is not the picture that was fetched|SHA-256"):
        verify_dataset(str(tmp_path / "data"))


def test_a_process_that_is_killed_while_it_reads_ends_in_what_to_do(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    manifest: Any = SimpleNamespace(shards=[signal.SIGKILL])
    with pytest.raises(ConfigError, match=r"was killed.*memory.*taskset -c 0"):
        list(verify._at_once(signal.raise_signal, manifest, in_processes=True))
