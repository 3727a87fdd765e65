import base64
from pathlib import Path
from typing import Any

import pytest

from tests.training.evaluation.benchmark_folders import TOLERANCE, golden, png, score
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
