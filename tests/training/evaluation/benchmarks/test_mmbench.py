import base64
import json
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from tests.training.evaluation import benchmark_folders
from tests.training.evaluation.benchmark_folders import TOLERANCE, golden, png, score, write_lines
from training.cli import run
from training.evaluation.benchmarks.mmbench import MMBench
from training.evaluation.catalogue import benchmark
from training.evaluation.metrics.choice import vlmevalkit_letter


def test_mmbench_equals_the_server_and_vlmevalkit(tmp_path: Path) -> None:
    vectors = golden("mmbench")
    expected = vectors["expected"]
    result = score("mmbench", tmp_path)
    for name, value in {
        "score": expected["circular_strict_letter"],
        "circular": expected["circular_strict_letter"],
        "vlmevalkit": expected["circular_vlmevalkit_exact"],
        "vanilla": expected["vanilla_all_rows_strict"],
        "vanilla_first_pass": expected["vanilla_first_pass_strict"],
        "per_l2_category": expected["circular_strict_by_l2"],
    }.items():
        assert result[name] == pytest.approx(value, abs=TOLERANCE), name
    assert (result["questions"], result["rows"]) == (expected["questions"], expected["rows"])
    for row in vectors["rows"]:
        options = dict(zip("ABCD", row[3], strict=False))
        assert vlmevalkit_letter(row[7], options) == row[8]


def test_mmbench_builds_the_published_prompts() -> None:
    encoded = base64.b64encode(png()).decode()
    for name, given, expected in golden("prompts")["rows"]:
        if name.startswith("mmbench"):
            chosen: Any = benchmark(name)
            row = {"image": encoded, **given}
            assert isinstance(chosen, MMBench)
            prompt = chosen._question(row, "dev", None).prompt  # type: ignore[arg-type]
            assert expected.endswith(f"USER: <image>\n{prompt} ASSISTANT:")


def test_the_servers_table_takes_whatever_a_model_says(tmp_path: Path) -> None:
    path = Path(benchmark_folders.mmbench(tmp_path))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["text"], rows[1]["text"] = "=A1+2", "A\x02\x0b"
    write_lines(path, rows)
    words = ["score", "mmbench", "--data", str(tmp_path), "--predictions", str(path)]
    assert run([*words, "--submission", str(tmp_path / "s.xlsx")]) == 0
    sheet: Any = openpyxl.load_workbook(tmp_path / "s.xlsx").active
    assert sheet.max_row == len(rows) + 1
    head = [cell.value for cell in sheet[1]]
    said = [row[head.index("prediction")] for row in sheet.iter_rows(min_row=2, max_row=3)]
    assert [(cell.value, cell.data_type) for cell in said] == [("=A1+2", "s"), ("A", "s")]
