import io
import json
from pathlib import Path

from schemas.terminal import Console
from tests.training.evaluation import benchmark_folders
from training.evaluation.catalogue import benchmark
from training.evaluation.results import (
    BenchmarkResult,
    Results,
    print_results,
    write_results,
)
from training.evaluation.scoring import score_files


def results(folder: Path) -> Results:
    path = benchmark_folders.pope(folder)
    scored = score_files(benchmark("pope"), str(folder), [path])
    pope = BenchmarkResult(
        benchmark=benchmark("pope"), folder=folder, matched=scored.matched, scored=scored
    )
    vqav2 = BenchmarkResult(
        benchmark=benchmark("vqav2"), folder=folder, submission=folder / "answers.json"
    )
    return Results(model="m|1", protocol="aligngpt", precision="fp32", benchmarks=[pope, vqav2])


def test_the_files_say_what_was_scored_and_what_only_a_server_scores(tmp_path: Path) -> None:
    found = results(tmp_path)
    write_results(str(tmp_path / "out"), found)
    values = json.loads((tmp_path / "out" / "results.json").read_text())["benchmarks"]
    assert found.benchmarks[0].scored is not None
    assert values["pope"]["right"]["score"] == found.benchmarks[0].scored.score
    assert (values["vqav2"]["right"], values["vqav2"]["submission"]) == (None, "answers.json")
    rows = [
        line for line in (tmp_path / "out" / "results.md").read_text().splitlines() if "|" in line
    ]
    assert all(row.replace(r"\|", "").count("|") == 7 for row in rows[1:])
    assert "server only" in rows[-1]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "POPE" in page and "m|1" in page


def test_the_terminal_names_what_goes_to_a_server(tmp_path: Path) -> None:
    written = io.StringIO()
    print_results(Console(file=written, width=200), results(tmp_path), "out")
    said = written.getvalue()
    assert f"for its server: {tmp_path / 'answers.json'}" in said
    assert "report: out/report.html" in said
