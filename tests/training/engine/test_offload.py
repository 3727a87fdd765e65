from pathlib import Path
from typing import Any

import pytest

from tests.training.test_train import go_back, logged, stage_2
from training.config import ParallelConfig
from training.train import train


@pytest.mark.slow
@pytest.mark.parametrize(
    ("offload", "zero_stage", "precision"), [("optimizer", 2, "bf16"), ("all", 3, "fp32")]
)
def test_what_waits_in_main_memory_learns_the_same_and_resumes(
    tiny_parts: dict[str, str],
    conversation_dataset: str,
    tmp_path: Path,
    offload: Any,
    zero_stage: Any,
    precision: Any,
) -> None:
    runs = {}
    for name, where in (("stays", "none"), ("waits", offload)):
        parallel = ParallelConfig(zero_stage=zero_stage, precision=precision, offload=where)
        changes = {"save_every_steps": 2, "keep_checkpoints": 9, "max_steps": 4}
        config = stage_2(tiny_parts, parallel=parallel, **changes)
        assert train(config, [conversation_dataset], str(tmp_path / name))
        runs[name] = logged(tmp_path / name, "train/loss")
    assert runs["waits"] == pytest.approx(runs["stays"], rel=1e-5)
    go_back(tmp_path / "waits", tmp_path / "resumed", step=2)
    assert train(config, [conversation_dataset], str(tmp_path / "resumed"))
    assert logged(tmp_path / "resumed", "train/loss") == pytest.approx(runs["waits"], rel=1e-5)
