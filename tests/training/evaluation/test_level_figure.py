import io
import json
from pathlib import Path

from rich.console import Console

from training.evaluation.level_figure import gate_table, levels_table, write_levels
from training.evaluation.levels import GateWeights, LevelsFound, Told, Vectors


def found(with_samples: bool) -> LevelsFound:
    told = {
        1: Told(loss=2.5, difference=0.5, low=0.25, high=0.75),
        2: Told(loss=2.1, difference=0.1, low=-0.1, high=0.3),
        3: Told(loss=2.0, difference=0.0, low=0.0, high=0.0),
    }
    gate = {
        "descriptions": GateWeights(samples=7, mean=[0.25, 0.75], spread=[0.05, 0.05]),
        "short answers": GateWeights(samples=9, mean=[0.6, 0.4], spread=[0.1, 0.1]),
    }
    return LevelsFound(
        num_levels=3,
        vectors=Vectors(
            lengths=[1.5, 1.25, 2.0],
            start_lengths=[1.0, 1.0, 1.0] if with_samples else None,
            moved=[0.75, 0.5, 1.75] if with_samples else None,
            cosines=[[1.0, 0.2, -0.1], [0.2, 1.0, 0.0], [-0.1, 0.0, 1.0]],
        ),
        samples=16 if with_samples else 0,
        untold=2.05 if with_samples else None,
        told=told if with_samples else {},
        gate=gate if with_samples else {},
    )


def said(table: object) -> str:
    file = io.StringIO()
    Console(file=file, width=160).print(table)
    return file.getvalue()


def test_both_tables_and_the_files_say_what_was_found(tmp_path: Path) -> None:
    shown = said(levels_table(found(with_samples=True)))
    assert "+0.5000" in shown and "+0.2500 to +0.7500" in shown and "1.750" in shown
    assert "16 held-out samples" in shown and "loss 2.0500" in shown
    shown = said(gate_table(found(with_samples=True)))
    assert "0.600 ± 0.100" in shown and "descriptions" in shown
    write_levels(found(with_samples=True), tmp_path)
    values = json.loads((tmp_path / "levels.json").read_text())
    assert values["told"]["1"]["low"] == 0.25
    assert values["gate"]["descriptions"]["mean"] == [0.25, 0.75]
    assert (tmp_path / "levels.png").read_bytes().startswith(b"\x89PNG")


def test_what_was_not_looked_at_is_left_out(tmp_path: Path) -> None:
    assert gate_table(found(with_samples=False)) is None
    assert "2.000" in said(levels_table(found(with_samples=False)))
    write_levels(found(with_samples=False), tmp_path)
    assert json.loads((tmp_path / "levels.json").read_text())["vectors"]["moved"] is None
