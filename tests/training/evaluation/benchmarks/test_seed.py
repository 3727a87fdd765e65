import json
from pathlib import Path

from tests.training.evaluation.benchmark_folders import answer, golden, score, write, write_lines
from training.cli import run
from training.evaluation.catalogue import benchmark
from training.evaluation.scoring import score_files


def test_seed_equals_the_official_script(tmp_path: Path) -> None:
    printed = golden("seed")["expected"]["stdout"]
    result = score("seed", tmp_path)
    said = {name: f"{value:.2f}%" for name, value in result["per_type"].items()}
    said["Total accuracy"] = f"{result['accuracy']:.2f}%"
    said["image accuracy"] = f"{result['score']:.2f}%"
    said["video accuracy"] = f"{result['video_accuracy']:.2f}%"
    assert said == dict(line.split(": ") for line in printed)


def test_seeds_number_is_of_image_questions_and_its_server_gets_videos_too(tmp_path: Path) -> None:
    kinds = {"1": ("image", 1), "v2": ("video", 10), "3": ("image", 2)}
    questions = [
        {"question_id": n, "question_type_id": kind, "data_type": what, "answer": "A"}
        for n, (what, kind) in kinds.items()
    ]
    write(tmp_path / "SEED-Bench.json", {"questions": questions, "question_type": {}})
    everything = [answer(n, "A") for n in (3, "v2", 1)]
    path = write_lines(tmp_path / "a.jsonl", everything)
    scored = score_files(benchmark("seed"), str(tmp_path), [path])
    assert any(note.startswith("2 questions, where the published set has 14,233")
               for note in scored.notes)  # fmt: skip
    words = ["score", "seed", "--data", str(tmp_path), "--predictions", path]
    assert run([*words, "--submission", str(tmp_path / "s.jsonl")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert rows == [{"question_id": n, "prediction": "A"} for n in ("1", "v2", "3")]
