from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.errors import ConfigError
from tests.training.evaluation import benchmark_folders
from tests.training.evaluation.benchmark_folders import S, golden, parquet, read, score, write_lines
from training.evaluation.catalogue import benchmark
from training.evaluation.scoring import score_files


def test_gqa_equals_the_official_script(tmp_path: Path) -> None:
    expected = golden("gqa")["expected"]
    result = score("gqa", tmp_path)
    for name in ("accuracy", "binary", "open", "distribution", "balanced_questions"):
        assert result[name] == expected[name]
    assert result["score"] == expected["accuracy"]
    for name in ("structural", "semantic"):
        means = expected["per_type"][f"Accuracy / {name} type"]
        assert result[f"per_{name}_type"] == {kind: mean for kind, (mean, _) in means.items()}


def test_gqa_refuses_a_balanced_question_without_answer(tmp_path: Path) -> None:
    path = Path(benchmark_folders.gqa(tmp_path))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[1:]))
    with pytest.raises(ConfigError, match="206000000"):
        score_files(benchmark("gqa"), str(tmp_path), [str(path)])


def test_gqa_parquet_finds_its_pictures_in_the_other_config(tmp_path: Path) -> None:
    row = {"id": "201", "imageId": "n1", "question": "Is it?", "answer": "yes"}
    instructions = tmp_path / "testdev_balanced_instructions" / "testdev-00000-of-00001.parquet"
    instructions.parent.mkdir()
    pq.write_table(pa.Table.from_pylist([row]), instructions)
    images = tmp_path / "testdev_balanced_images" / "testdev-00000-of-00001.parquet"
    parquet(images, [{"id": "n0"}, {"id": "n1"}])
    [question] = read("gqa", tmp_path)
    assert question.prompt == f"Is it?{S}" and question.facts["answer"] == "yes"
    assert question.picture is not None and question.picture.open().getpixel((0, 0)) == (0, 255, 0)


def test_questions_that_the_annotations_do_not_know_are_refused(tmp_path: Path) -> None:
    benchmark_folders.gqa(tmp_path)
    asked = [{"question_id": "999", "image": "n1.jpg", "text": f"Is it?{S}"}]
    write_lines(tmp_path / "llava_gqa_testdev_balanced.jsonl", asked)
    with pytest.raises(ConfigError, match="different splits"):
        read("gqa", tmp_path)
