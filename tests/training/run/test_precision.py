"""What a run computes in: chosen when it begins, kept where it goes on."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from schemas.arithmetic import LIMITS
from training.config import ParallelConfig, TrainConfig
from training.engine.deepspeed import start_distributed
from training.run.folder import RunFolder
from training.run.precision import with_settled_precision

WITH_BF16 = "flags : fpu avx2 avx512f avx512_bf16\n"
WITHOUT_BF16 = "flags : fpu avx2\n"

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], int]:
    """Returns a function that moves the test to a machine with these instructions."""
    for name in LIMITS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("schemas.arithmetic.CPU_INFO", tmp_path / "cpuinfo")
    return (tmp_path / "cpuinfo").write_text


@pytest.fixture
def alone() -> None:
    """One process that is a group of its own."""
    start_distributed()


def begin(out: Path, parallel: ParallelConfig) -> RunFolder:
    """Returns the settled folder of a run, as it stands once it has learnt something."""
    config = TrainConfig(parallel=parallel)
    folder = with_settled_precision(RunFolder(out=out, config=config, data=("d",), init=None))
    folder.write_config()
    (out / "checkpoints").mkdir(exist_ok=True)
    (out / "checkpoints" / "latest").write_text("step_1")
    return folder


def test_a_run_goes_on_elsewhere_in_what_it_began_with(
    machine: Callable[[str], int], alone: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    machine(WITHOUT_BF16)
    begin(tmp_path / "run", ParallelConfig())
    reason = "the processor has no bf16 instructions and would emulate them"
    assert f"parallel.precision fp32: {reason}" in " ".join(capfd.readouterr().err.split())
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["config"]["parallel"]["precision"] == "fp32"
    assert stored["precision_reason"] == reason

    machine(WITH_BF16)
    for _ in range(2):
        folder = begin(tmp_path / "run", ParallelConfig())
        assert folder.config.parallel.precision == "fp32"
        said = " ".join(capfd.readouterr().err.split())
        assert said == f"parallel.precision fp32: as this run began: {reason}"
    folder.check()
    assert begin(tmp_path / "other", ParallelConfig()).config.parallel.precision == "bf16"


def test_a_run_that_has_learnt_nothing_chooses_anew(
    machine: Callable[[str], int], alone: None, tmp_path: Path
) -> None:
    machine(WITHOUT_BF16)
    begin(tmp_path, ParallelConfig())
    (tmp_path / "checkpoints" / "latest").unlink()
    machine(WITH_BF16)
    assert begin(tmp_path, ParallelConfig()).config.parallel.precision == "bf16"


def test_emulated_bf16_by_name_warns_with_the_ratio(
    machine: Callable[[str], int], alone: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    machine(WITHOUT_BF16)
    begin(tmp_path, ParallelConfig(precision="bf16"))
    said = " ".join(capfd.readouterr().err.split())
    assert said.startswith("parallel.precision bf16: as asked for parallel.precision is bf16, but")
    assert "times as long in bf16 as in fp32 here" in said


def test_a_run_of_before_the_reasons_goes_on(
    machine: Callable[[str], int], alone: None, tmp_path: Path
) -> None:
    machine(WITHOUT_BF16)
    begin(tmp_path, ParallelConfig(precision="bf16"))
    stored = json.loads((tmp_path / "config.json").read_text())
    del stored["precision_reason"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    folder = begin(tmp_path, ParallelConfig())
    assert folder.config.parallel.precision == "bf16"
    assert folder.precision_reason == "as this run began"
    folder.check()
