from pathlib import Path

from tests.training.evaluation.benchmark_folders import golden, score


def test_seed_equals_the_official_script(tmp_path: Path) -> None:
    printed = golden("seed")["expected"]["stdout"]
    result = score("seed", tmp_path)
    said = {name: f"{value:.2f}%" for name, value in result["per_type"].items()}
    said["Total accuracy"] = f"{result['accuracy']:.2f}%"
    said["image accuracy"] = f"{result['score']:.2f}%"
    said["video accuracy"] = f"{result['video_accuracy']:.2f}%"
    assert said == dict(line.split(": ") for line in printed)
