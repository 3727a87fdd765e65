from pathlib import Path

import pytest

from training.config import DataConfig, ModelConfig, ParallelConfig, TrainConfig
from training.parts import assemble
from training.train import train


def test_a_table_of_what_learns_is_printed_at_the_start(
    tiny_parts: dict[str, str],
    caption_dataset: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = TrainConfig(
        model=ModelConfig(**tiny_parts, num_levels=4),
        data=DataConfig(tokens_per_sequence=128, sequences_per_step=2, workers=0),
        parallel=ParallelConfig(precision="fp32", activation_checkpointing=False),
        train_parts=("projector", "level_vectors"),
        max_steps=1,
    )
    model = assemble(config, None).model
    assert train(config, [caption_dataset], str(tmp_path / "run"))
    cells = [line.strip("│┃ ") for line in capsys.readouterr().err.splitlines()]
    rows = {row[0]: row[1:] for line in cells if len(row := line.replace("│", " ").split()) == 3}
    for name, part in model.named_children():
        weights = f"{sum(p.numel() for p in part.parameters()):,}"
        learning = weights if name in ("projector", "level_vectors") else "0"
        assert rows[name] == [weights, learning]
