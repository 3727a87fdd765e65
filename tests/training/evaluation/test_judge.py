"""Judging against a real endpoint on this machine: cached, counted, its price told first."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.training.evaluation.benchmark_folders import answer, write, write_lines
from training.cli import run
from training.evaluation.catalogue import benchmark
from training.evaluation.commands import JudgeConfig
from training.evaluation.judge import judge_answers, judge_for
from training.evaluation.predictions import match, read_answers
from training.evaluation.scoring import score_answers, score_files


class Endpoint:
    """An OpenAI-compatible server that answers what it is told to."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.replies: Any = lambda number: "8 7\nBoth are fine."
        self.failures: list[int] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if outer.failures:
                    self.send_response(outer.failures.pop(0))
                    self.send_header("Retry-After", "0")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                outer.requests.append(json.loads(body))
                message = {"role": "assistant", "content": outer.replies(len(outer.requests))}
                choice = {"index": 0, "message": message, "finish_reason": "stop"}
                value = {
                    "id": "x",
                    "object": "chat.completion",
                    "created": 0,
                    "model": "judge-2024",
                    "choices": [choice],
                }
                text = json.dumps(value).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: Any) -> None:
                """Keeps the terminal quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    served = Endpoint()
    thread = threading.Thread(target=served.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield served
    served.server.shutdown()
    thread.join()
    served.server.server_close()


def write_llavabench(folder: Path) -> list[str]:
    kinds = ("conv", "detail", "complex")
    questions = [
        {"question_id": i, "image": "a.jpg", "category": kinds[i], "text": f"What {i}?"}
        for i in range(3)
    ]
    write_lines(folder / "questions.jsonl", questions)
    write_lines(folder / "context.jsonl", [{"id": 0, "image": "a.jpg", "caption": "A lamp."}])
    write_lines(folder / "answers_gpt4.jsonl", [answer(i, f"Lamp {i}.") for i in range(3)])
    rules = {f"llava_bench_{kind}": {"role": "Assistant", "prompt": "RULE"} for kind in kinds}
    write(folder / "rule.json", rules)
    path = write_lines(folder / "answers.jsonl", [answer(i, f"A lamp {i}.") for i in range(3)])
    return ["score", "llavabench", "--data", str(folder), "--predictions", path, "--json"]


def write_mmvet(folder: Path) -> list[str]:
    questions = {
        f"v1_{i}": {
            "imagename": "a.png",
            "question": "What is x?",
            "answer": "1<OR>one",
            "capability": ["math", "ocr"],
        }
        for i in range(2)
    }
    write(folder / "mm-vet.json", questions)
    (folder / "mm-vet_evaluator.py").write_text('import os\nprompt = """THE PROMPT"""\n')
    path = write_lines(folder / "answers.jsonl", [answer(i, "one") for i in range(2)])
    return ["score", "mmvet", "--data", str(folder), "--predictions", path, "--json"]


def last_json(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


@pytest.mark.slow
def test_answers_are_judged_as_the_published_script_asks(
    endpoint: Endpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    endpoint.failures = [429, 500]
    words = [*write_llavabench(tmp_path), "--judge.url", endpoint.url, "--yes"]
    assert run(words) == 0
    assert last_json(capsys)["score"] == 87.5
    assert len(endpoint.requests) == 3
    first = endpoint.requests[0]
    assert (first["model"], first["temperature"], first["max_tokens"]) == ("gpt-4-0314", 0.2, 1024)
    assert first["messages"][1]["content"] == (
        "[Context]\nA lamp.\n\n[Question]\nWhat 0?\n\n[Assistant 1]\nLamp 0.\n\n"
        "[End of Assistant 1]\n\n[Assistant 2]\nA lamp 0.\n\n[End of Assistant 2]\n\n"
        "[System]\nRULE\n\n"
    )


def test_a_reply_is_paid_for_once_and_kept_with_who_gave_it(
    endpoint: Endpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*write_llavabench(tmp_path), "--judge.url", endpoint.url]
    assert run([*words, "--yes"]) == 0
    replies = tmp_path / "judge" / "replies.jsonl"
    kept = [json.loads(line) for line in replies.read_text().splitlines()]
    assert {entry["model"] for entry in kept} == {"gpt-4-0314"}
    assert {entry["answered_by"] for entry in kept} == {"judge-2024"}
    with replies.open("a") as file:  # a kill cut a line off
        file.write('{"key": "x')
    capsys.readouterr()
    assert run(words) == 0  # nothing to pay, so nothing to agree to
    assert len(endpoint.requests) == 3
    assert run([*words, "--judge.runs", "2", "--yes"]) == 0
    assert len(endpoint.requests) == 6
    assert last_json(capsys)["runs"] == [87.5, 87.5]


def test_the_price_is_shown_and_must_be_agreed_to(
    endpoint: Endpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*write_llavabench(tmp_path), "--judge.url", endpoint.url]) == 2
    printed = " ".join(capsys.readouterr().err.split())
    assert "3 calls" in printed and "$0.0" in printed and "--yes" in printed
    assert endpoint.requests == []


def test_an_unreadable_reply_is_counted_not_guessed(
    endpoint: Endpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    endpoint.replies = lambda number: "8, 7\nSo." if number == 1 else "8 8"
    words = [*write_llavabench(tmp_path), "--judge.url", endpoint.url, "--yes"]
    assert run(words) == 0
    official = last_json(capsys)
    assert official["unparsable"] == 1
    assert official["score"] == 100.0  # (-1, -1) stays in both means, as in the published script
    assert run([*words, "--judge.parser", "strict"]) == 0
    strict = last_json(capsys)
    assert strict["unparsable"] == 0 and strict["score"] == pytest.approx(95.8)


def test_mmvet_is_judged_and_asked_again_where_no_score_comes(
    endpoint: Endpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    endpoint.replies = lambda number: "well" if number == 1 else "0.6"
    assert run([*write_mmvet(tmp_path), "--judge.url", endpoint.url, "--yes"]) == 0
    result = last_json(capsys)
    assert result["score"] == 60.0 and result["capability"] == {"math": 60.0, "ocr": 60.0}
    assert len(endpoint.requests) == 3
    content = endpoint.requests[0]["messages"][0]["content"]
    assert content == "THE PROMPT\nWhat is x? | 1 <OR> one | one | "
    assert endpoint.requests[0]["model"] == "gpt-4-0613"


def test_a_judge_that_is_not_there_is_said_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*write_llavabench(tmp_path), "--judge.url", "http://127.0.0.1:9/v1", "--yes"]
    assert run([*words, "--judge.retries", "0"]) == 2
    assert "run the same command again" in " ".join(capsys.readouterr().err.split())


def test_answers_without_a_judge_are_not_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(write_llavabench(tmp_path)) == 2
    assert "--judge.url" in capsys.readouterr().err


def test_missing_rules_are_named(
    endpoint: Endpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*write_mmvet(tmp_path), "--judge.url", endpoint.url, "--yes"]
    (tmp_path / "mm-vet_evaluator.py").unlink()
    assert run(words) == 2
    assert "mm-vet_evaluator.py" in capsys.readouterr().err


def test_answers_to_exchanged_pictures_are_judged_beside_the_right_ones(
    endpoint: Endpoint,
    model_folder: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(type(benchmark("llavabench")), "max_new_tokens", 4)
    data = tmp_path / "llavabench"
    write_llavabench(data)
    (data / "images").mkdir()
    questions = []
    for number, colour in enumerate(("red", "blue", "green")):
        name = f"{colour}.png"
        Image.new("RGB", (40, 40), colour).save(data / "images" / name)
        asked = {"question_id": number, "image": name, "category": "conv", "text": "What is it?"}
        questions.append(asked)
    write_lines(data / "questions.jsonl", questions)
    shown = [{"id": n, "image": q["image"], "caption": q["image"]} for n, q in enumerate(questions)]
    write_lines(data / "context.jsonl", shown)
    endpoint.replies = lambda number: "8 6" if number <= 3 else "8 2"
    out = tmp_path / "out"
    words = [
        *("evaluate", model_folder, "--benchmarks", "llavabench", "--data", str(data)),
        *("--out", str(out), "--precision", "fp32", "--control", "exchanged"),
        *("--judge.url", endpoint.url, "--yes"),
    ]
    assert run(words) == 0
    [found] = json.loads((out / "results.json").read_text())["benchmarks"].values()
    assert (found["right"]["score"], found["exchanged"]["score"]) == (75.0, 25.0)
    assert len(endpoint.requests) == 6
    contexts = [request["messages"][1]["content"].splitlines()[1] for request in endpoint.requests]
    assert contexts == ["red.png", "blue.png", "green.png"] * 2  # what the right picture shows
    folder = out / "llavabench"
    assert len((folder / "exchanged_judge" / "replies.jsonl").read_text().splitlines()) == 3
    assert run(words) == 0 and len(endpoint.requests) == 6  # each reply is paid for once


@pytest.mark.parametrize(("parser", "score"), [("official", 30.0), ("strict", 60.0)])
def test_what_mmvets_judge_never_scores_is_counted_and_kept_so(
    endpoint: Endpoint,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    parser: str,
    score: float,
) -> None:
    endpoint.replies = lambda number: "well" if number <= 6 else "0.6"
    words = [*write_mmvet(tmp_path), "--judge.url", endpoint.url, "--yes"]
    assert run([*words, "--judge.parser", parser]) == 0
    judged = last_json(capsys)
    assert (judged["unparsable"], judged["score"]) == (1, score)
    assert "1 of the judge's replies held no score that could be read" in judged["notes"]


@pytest.mark.parametrize("name", ["llavabench", "mmvet"])
@pytest.mark.parametrize("parser", ["official", "strict"])
def test_the_judges_file_gives_the_score_that_judging_gave(
    endpoint: Endpoint, tmp_path: Path, name: str, parser: Any
) -> None:
    write_files = {"llavabench": write_llavabench, "mmvet": write_mmvet}[name]
    endpoint.replies = lambda number: "well" if number <= 6 else "0.6"
    if name == "llavabench":
        endpoint.replies = lambda number: "8; 7" if number == 1 else "8 4"
    path = write_files(tmp_path)[-2]
    chosen: Any = benchmark(name)
    folder, config = chosen.folder(str(tmp_path)), JudgeConfig(url=endpoint.url, parser=parser)
    matched = match(chosen, chosen.read(folder, None, "score"), read_answers(path))
    judge = judge_for(chosen, config, tmp_path / "judge")
    judge_answers(chosen, matched.answers, folder, judge, config, is_agreed=True)
    file = tmp_path / chosen.judge_file
    file.write_bytes(chosen.record(matched.answers, judge.model))
    judged = score_answers(chosen, matched)
    again = score_files(chosen, str(tmp_path), [str(file)])
    assert (again.score, again.parts) == (judged.score, judged.parts)
    assert judged.parts["unparsable"] == 1
