"""Every number that the published scripts gave, from answer files, to the last digit."""

import json
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import ConfigError
from tests.training.evaluation import benchmark_folders
from tests.training.evaluation.benchmark_folders import golden, write_lines
from training.cli import run
from training.evaluation.benchmarks import llavabench as llavabench_module
from training.evaluation.benchmarks import mme as mme_module
from training.evaluation.catalogue import benchmark, benchmarks
from training.evaluation.metrics.choice import scienceqa_letter, vlmevalkit_letter
from training.evaluation.metrics.consensus import eval_ai_score, vqa_eval_score
from training.evaluation.metrics.judged import llavabench_pair
from training.evaluation.metrics.normalise import eval_ai, vqa_eval
from training.evaluation.metrics.yes_no import mme_answer, pope_answer
from training.evaluation.protocol import Benchmark
from training.evaluation.questions import Answer, Question
from training.evaluation.scoring import score_files

TOLERANCE = 1e-6


def score(name: str, folder: Path) -> dict[str, Any]:
    """Returns what `score --json` prints of the golden vectors of a benchmark."""
    path = getattr(benchmark_folders, name)(folder)
    return score_files(benchmark(name), str(folder), [path]).to_json()


def test_every_benchmark_of_the_paper_is_there() -> None:
    assert len(benchmarks()) >= 12
    assert benchmark("MM-Vet") is benchmark("mmvet")
    assert benchmark("SQA") is benchmark("scienceqa")


def test_vqav2_equals_the_official_script(tmp_path: Path) -> None:
    expected = golden("vqav2")["expected"]
    result = score("vqav2", tmp_path)
    assert result["score"] == result["overall"] == expected["submission"]["overall"]
    assert result["per_answer_type"] == expected["submission"]["perAnswerType"]
    assert result["per_question_type"] == expected["submission"]["perQuestionType"]
    assert result["missing"] == 2 and result["bad_lines"] == 1


def test_vqav2_scores_each_answer_as_the_official_script() -> None:
    for row in golden("vqav2")["rows"]:
        given, text, submitted, of_submitted, of_raw = row[3:]
        sent = eval_ai(text) if row[0] not in golden("vqav2")["missing_from_results"] else ""
        assert sent == submitted
        assert 100 * vqa_eval_score(submitted, given) == pytest.approx(of_submitted, abs=TOLERANCE)
        assert 100 * vqa_eval_score(text, given) == pytest.approx(of_raw, abs=TOLERANCE)


def test_both_normalisers_equal_the_official_ones() -> None:
    for text, of_eval_ai, of_vqa_eval in golden("vqav2")["normalizer"]:
        assert (eval_ai(text), vqa_eval(text)) == (of_eval_ai, of_vqa_eval), text


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


def test_vizwiz_equals_both_scripts(tmp_path: Path) -> None:
    expected = golden("vizwiz")["expected"]
    result = score("vizwiz", tmp_path)
    assert result["lmms_eval"] == pytest.approx(expected["lmms_eval_mean"], abs=TOLERANCE)
    assert result["score"] == pytest.approx(100 * expected["lmms_eval_mean"], abs=TOLERANCE)
    assert result["vqa_eval"]["overall"] == expected["vqaEval"]["overall"]
    assert result["vqa_eval"]["per_answer_type"] == expected["vqaEval"]["perAnswerType"]
    for row in golden("vizwiz")["rows"]:
        assert eval_ai(row[5]) == row[6]
        assert eval_ai_score(row[5], row[3]) == pytest.approx(row[7], abs=TOLERANCE)


def test_scienceqa_equals_the_official_script(tmp_path: Path) -> None:
    expected = golden("scienceqa")["expected"]
    result = score("scienceqa", tmp_path)
    assert result["score"] == pytest.approx(expected["img_acc"], abs=TOLERANCE)
    assert result["image_accuracy"] == pytest.approx(expected["img_acc"], abs=TOLERANCE)
    assert result["accuracy"] == pytest.approx(expected["acc"], abs=TOLERANCE)
    assert (result["image_count"], result["count"]) == (expected["img_total"], expected["count"])
    for row in golden("scienceqa")["rows"]:
        assert scienceqa_letter(row[4] if row[4] is not None else "FAILED") == row[5]


def test_textvqa_equals_the_official_script(tmp_path: Path) -> None:
    vectors = golden("textvqa")
    result = score("textvqa", tmp_path)
    assert f"Accuracy: {result['score']:.2f}%" in vectors["expected"]["stdout"]
    assert result["samples"] == vectors["expected"]["samples"]
    for row in vectors["rows"]:
        assert eval_ai_score(row[5], row[3]) == pytest.approx(row[6], abs=TOLERANCE)


def test_a_textvqa_row_given_twice_counts_twice(tmp_path: Path) -> None:
    path = Path(benchmark_folders.textvqa(tmp_path))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, lines[0]]))
    result = score_files(benchmark("textvqa"), str(tmp_path), [str(path)]).to_json()
    assert (result["samples"], result["duplicates"]) == (71, 1)


def test_pope_equals_the_official_script(tmp_path: Path) -> None:
    vectors = golden("pope")
    result = score("pope", tmp_path)
    assert result["score"] == pytest.approx(vectors["paper_number_mean_f1_x100"], abs=TOLERANCE)
    for category, numbers in vectors["expected"].items():
        assert result[category] == pytest.approx(numbers, abs=TOLERANCE)
    for text, said in vectors["text_to_yesno"]:
        assert pope_answer(text) == said, text


def test_pope_needs_no_question_file_of_llava(tmp_path: Path) -> None:
    path = benchmark_folders.pope(tmp_path)
    (tmp_path / "llava_pope_test.jsonl").unlink()
    result = score_files(benchmark("pope"), str(tmp_path), [path])
    expected = golden("pope")["paper_number_mean_f1_x100"]
    assert result.score == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("has_question_file", [True, False])
def test_pope_labels_of_another_version_are_paired_or_refused(
    tmp_path: Path, has_question_file: bool
) -> None:
    path = benchmark_folders.pope(tmp_path)
    file = tmp_path / "coco" / "coco_pope_random.json"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    image = rows[0]["image"]
    new = [
        {"image": image, "text": f"Is there a {thing} in the image?", "label": label}
        for thing, label in (("comet", "yes"), ("glacier", "no"))
    ]
    rows = [*rows[:5], *new, *rows[5:]]
    write_lines(file, ({**row, "question_id": i} for i, row in enumerate(rows, start=1)))
    expected = golden("pope")["paper_number_mean_f1_x100"]
    if has_question_file:
        result = score_files(benchmark("pope"), str(tmp_path), [path])
        assert result.score == pytest.approx(expected, abs=TOLERANCE)
        return
    (tmp_path / "llava_pope_test.jsonl").unlink()
    with pytest.raises(ConfigError, match="e3e3926"):
        score_files(benchmark("pope"), str(tmp_path), [path])


def test_mme_equals_the_official_tool(tmp_path: Path) -> None:
    vectors = golden("mme")
    result = score("mme", tmp_path)
    expected = vectors["expected"]
    assert result["score"] == result["perception"] == expected["perception"]
    assert result["cognition"] == expected["cognition"]
    assert result["tasks"] == expected["per_task"]
    for text, said, _ in vectors["parse"]:
        assert mme_answer(text + "\n" if text else "\n") == said, text
        assert mme_answer(text) == said, text


def test_mme_writes_the_lines_of_its_tool(tmp_path: Path) -> None:
    path = benchmark_folders.mme(tmp_path)
    first = score_files(benchmark("mme"), str(tmp_path), [path]).answers
    lines = {mme_module.tool_line(answer) for answer in first}
    assert golden("mme")["result_line_example"] in lines


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


def test_seed_equals_the_official_script(tmp_path: Path) -> None:
    printed = golden("seed")["expected"]["stdout"]
    result = score("seed", tmp_path)
    said = {name: f"{value:.2f}%" for name, value in result["per_type"].items()}
    said["Total accuracy"] = f"{result['accuracy']:.2f}%"
    said["image accuracy"] = f"{result['score']:.2f}%"
    said["video accuracy"] = f"{result['video_accuracy']:.2f}%"
    assert said == dict(line.split(": ") for line in printed)


def test_llavabench_equals_the_official_script(tmp_path: Path) -> None:
    vectors = golden("llavabench")
    result = score("llavabench", tmp_path)
    for name, numbers in vectors["expected"].items():
        assert result[name] == numbers
    assert result["score"] == vectors["expected"]["all"][0]
    for reply, pair in vectors["parse_score"]:
        assert list(llavabench_pair(reply)) == pair, reply


def test_llavabench_asks_the_judge_what_the_official_script_asks() -> None:
    vectors = golden("llavabench")
    given = vectors["assembly_inputs"]
    questions = given["q"].split("/")
    for number, expected in enumerate(vectors["assembled_user_content"]):
        content = llavabench_module.assemble(
            given["captions"][number],
            questions[number],
            given["ref"][number],
            given["cand"][number],
            given["rule prompts"][number],
            given["role"],
        )
        assert content == expected


@pytest.mark.parametrize("runs", [1, 3])
def test_mmvet_equals_the_official_script(tmp_path: Path, runs: int) -> None:
    path = benchmark_folders.mmvet(tmp_path, runs)
    expected = golden("mmvet")["expected"][f"{runs}_runs"]
    result = score_files(benchmark("mmvet"), str(tmp_path), [path]).to_json()
    totals = {name: result[name] for name in ("total", "std", "runs")}
    assert {**result["capability"], **totals} == expected["capability"]
    assert {**result["integration"], **totals} == expected["integration"]
    assert result["score"] == expected["capability"]["total"]


def test_mmvet_asks_again_as_the_official_script_does() -> None:
    chosen: Any = benchmark("mmvet")
    vectors = golden("mmvet")
    given = vectors["query_inputs"]
    question = Question(question_id=0, prompt=given["question"], facts={"answer": given["answer"]})
    answer = Answer(question=question, text=given["prediction"])
    for replies, value, calls, temperatures, _ in vectors["judge"]:
        asked: list[Any] = []
        waiting = iter([*replies, "last"])

        def ask(request: Any, asked: list[Any] = asked, waiting: Any = waiting) -> str:
            asked.append(request)
            return str(next(waiting))

        found = chosen.judge(answer, given["prompt"], ask, "official")
        assert (found.value, len(asked)) == (value, calls)
        assert [request.temperature for request in asked] == temperatures
        contents = [request.messages[0]["content"] for request in asked]
        assert contents[0].endswith(vectors["query_tail_first_call"])
        assert all(content.endswith(vectors["query_tail_retry"]) for content in contents[1:])


@pytest.mark.parametrize("name", list(benchmarks()))
def test_score_prints_one_json_object(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "mmbench_cn":
        path = benchmark_folders.mmbench(tmp_path, "mmbench_dev_cn_20231003.tsv")
    else:
        path = getattr(benchmark_folders, name)(tmp_path)
    words = ["score", name, "--data", str(tmp_path), "--predictions", path]
    assert run([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["benchmark"] == name
    low, high = result["interval"]
    assert low <= result["score"] + 0.06 and result["score"] - 0.06 <= high
    assert run(words) == 0
    assert "95 % interval" in capsys.readouterr().out


def test_a_benchmark_is_one_class_with_its_facts() -> None:
    for chosen in benchmarks().values():
        assert isinstance(chosen, Benchmark)
        assert chosen.layout and chosen.source and chosen.metric and chosen.paper
