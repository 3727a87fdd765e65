"""What a dataset is scored in: chosen when it begins, kept wherever it goes on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import CurationConfig
from pipeline.dataset.guard import guard_folder
from pipeline.score.precision import (
    SettledPrecision,
    record_precision,
    settle_precision,
    with_settled,
)
from schemas.arithmetic import LIMITS
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from scoring.config import LevelConfig, Precision, ScoreConfig
from tests.curations import contents, curate, write_pairs

WITH_BF16 = "flags : fpu avx2 avx512f avx512_bf16\n"
WITHOUT_BF16 = "flags : fpu avx2\n"
HAS = "the processor has bf16 instructions (avx512_bf16)"
HAS_NOT = "the processor has no bf16 instructions and would emulate them"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], int]:
    """Returns a function that moves the test to a machine with these instructions."""
    for name in LIMITS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("schemas.arithmetic.CPU_INFO", tmp_path / "cpuinfo")
    return (tmp_path / "cpuinfo").write_text


def asking(precision: Precision, edges_from: str | None = None) -> CurationConfig:
    score = ScoreConfig(precision=precision, device="cpu")
    return CurationConfig(score=score, levels=LevelConfig(edges_from=edges_from))


def begin(root: Path, precision: Precision = "auto", edges_from: str | None = None) -> Any:
    """Returns what a job settles on, as it records it before it scores."""
    layout, config = DatasetLayout(str(root)), asking(precision, edges_from)
    settled = settle_precision(layout, config, None)
    guard_folder(layout, with_settled(config, settled), [Stage.SCORE], {})
    record_precision(layout, settled)
    return settled


@pytest.mark.slow
def test_a_dataset_goes_on_elsewhere_in_what_it_began_with(
    config: CurationConfig,
    rows: list[tuple[str, str]],
    machine: Callable[[str], int],
    tmp_path: Path,
) -> None:
    root, few = tmp_path / "out", write_pairs(tmp_path / "input", rows[:6])
    machine(WITH_BF16)
    manifest, said = curate(config, few, root)
    assert f"score.precision bf16: {HAS}" in said
    assert manifest is not None and manifest.config["score"]["precision"] == "bf16"
    recorded = json.loads((root / "_run" / "precision.json").read_text())
    assert recorded == {"precision": "bf16", "reason": HAS}
    before = contents(root)
    machine(WITHOUT_BF16)
    _, said = curate(config, few, root)
    assert contents(root) == before
    assert f"score.precision bf16: as this dataset began ({HAS})" in said
    assert "would emulate them: a matrix product takes" in said


@pytest.mark.parametrize("redo", [Stage.READ, Stage.SCORE])
def test_scores_that_are_made_anew_are_chosen_for_anew(
    redo: Stage, machine: Callable[[str], int], tmp_path: Path
) -> None:
    machine(WITH_BF16)
    begin(tmp_path)
    machine(WITHOUT_BF16)
    layout = DatasetLayout(str(tmp_path))
    assert settle_precision(layout, asking("auto"), Stage.LEVEL).precision == "bf16"
    settled = settle_precision(layout, asking("auto"), redo)
    assert (settled.precision, settled.reason, settled.warning) == ("fp32", HAS_NOT, None)
    record_precision(layout, settled)
    machine(WITH_BF16)
    assert begin(tmp_path).reason == f"as this dataset began ({HAS_NOT})"


def test_a_dataset_of_before_goes_on_in_its_own_precision(
    machine: Callable[[str], int], tmp_path: Path
) -> None:
    machine(WITH_BF16)
    begin(tmp_path, "fp32")
    (tmp_path / "_run" / "precision.json").unlink()
    layout = DatasetLayout(str(tmp_path))
    assert settle_precision(layout, asking("auto"), None).precision == "bf16"  # nothing is scored
    (tmp_path / "scored").mkdir()
    (tmp_path / "scored" / "00000.parquet").touch()
    settled = settle_precision(layout, asking("auto"), None)
    assert str(settled) == "score.precision fp32: as this dataset began"


def test_what_is_asked_for_by_name_is_taken_and_said_with_its_price(
    machine: Callable[[str], int], tmp_path: Path
) -> None:
    machine(WITHOUT_BF16)
    settled: SettledPrecision = begin(tmp_path, "bf16")
    assert str(settled) == "score.precision bf16: as asked for"
    assert settled.warning is not None and "times as long in bf16 as in fp32" in settled.warning
    assert begin(tmp_path).reason == "as this dataset began (asked for by name)"


def test_old_edges_cut_scores_of_their_own_precision(
    machine: Callable[[str], int], tmp_path: Path
) -> None:
    machine(WITHOUT_BF16)
    begin(tmp_path / "first")
    machine(WITH_BF16)
    settled = begin(tmp_path / "second", edges_from=str(tmp_path / "first"))
    assert settled.precision == "fp32"
    assert settled.reason == f"as in {tmp_path / 'first'}, whose edges are used"
    assert settled.warning is None
