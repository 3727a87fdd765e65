import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.test_train import command_line, logged, own_environment
from training.engine.launch import free_port

DOCS = Path(__file__).parents[3] / "docs" / "training-on-clusters.md"


@pytest.mark.slow
def test_deepspeeds_launcher_runs_the_recipe_of_the_docs(
    tiny_parts: dict[str, str], caption_dataset: str, tmp_path: Path
) -> None:
    """Two processes on this machine, which a hostfile names."""
    [recipe] = re.findall(
        r"^ +deepspeed (.*--module training\.cli) finetune", DOCS.read_text(), re.M
    )
    (tmp_path / "hosts").write_text("localhost slots=2\n")
    out = tmp_path / "run"
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--no_ssh_check"]
    launcher += ["--master_addr", "127.0.0.1", "--master_port", str(free_port())]
    words = command_line(tiny_parts, "pretrain", caption_dataset, out)[3:]
    subprocess.run(
        [*launcher, *recipe.split(), *words, "--max-steps", "2"],
        check=True,
        timeout=300,
        cwd=tmp_path,
        env={**own_environment(), "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(DOCS.parent.parent)},
    )
    assert len(logged(out, "train/loss")) == 2
    assert (out / "model" / "model.safetensors").exists()
