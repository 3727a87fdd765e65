import json
from pathlib import Path

from training.metrics.log import MetricsLog, draw_loss, read_metrics


def test_a_resumed_log_forgets_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, is_active=True, first_step=0)
    for step in range(5):
        log.write(step, {"train/loss": float(step)})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "train/lo')
    log = MetricsLog(tmp_path, is_active=True, first_step=2)
    log.write(3, {"train/loss": 9.0})
    log.close()
    entries = read_metrics(tmp_path / "metrics.jsonl")
    assert [(entry["step"], entry["train/loss"]) for entry in entries] == [
        (0, 0.0),
        (1, 1.0),
        (2, 2.0),
        (3, 9.0),
    ]
    draw_loss(tmp_path / "metrics.jsonl", tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_metrics_are_lines_of_json(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, is_active=True, first_step=0)
    log.write(1, {"train/loss": 2.5})
    log.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "train/loss": 2.5}
