"""The tables of the docs are what the stored results of the benchmarks give."""

import argparse
import json
from pathlib import Path

import pytest

from benchmarks import everything, results, tables

COMPARED = {
    "images": 2000,
    "rounds": 1,
    "least_core_ms": {"preparing": 2.856, "serving": 0.106, "asking": 0.2},
    "decoding_alone_per_second": 700.2,
    "cores_allow_per_second": 632.8,
    "share_of_the_bound": 0.714,
    "ours": {
        "images_per_second": 318.6,
        "working_seconds": 4.0,
        "peak_mib": 484.2,
        "core_ms_per_image": 3.456,
        "kept": 2000,
    },
    "img2dataset": {
        "images_per_second": 120.4,
        "working_seconds": 8.0,
        "peak_mib": 2300.0,
        "core_ms_per_image": 9.0,
        "kept": 1999,
    },
    "times_faster_by_the_clock": 2.646,
    "times_faster_in_their_own_count": 2.0,
    "memory_ratio": 0.21,
}


def test_every_marked_table_of_the_docs_is_made_from_its_result() -> None:
    marked = {path: path.read_text("utf-8") for path in tables.pages()}
    for path, text in marked.items():
        assert tables.with_tables(text) == text, f"{path.name}: python benchmarks/tables.py --write"
    names = [name for text in marked.values() for _, name, _ in tables.MARKED.findall(text)]
    stored = {path.stem for path in results.FOLDER.glob("*.json")}
    assert stored == set(names)


def test_a_result_says_what_it_was_made_on_and_its_table_is_put_between_the_marks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    path = results.save_result("fetch_cpu", COMPARED)
    values = json.loads(path.read_text())
    assert values["machine"]["cores"] >= 1
    assert values["versions"]["img2dataset"] != "not installed"
    page = (
        "# A page\n\n<!-- from benchmarks/results/fetch_cpu.json -->\nold\n<!-- end -->\n\nmore\n"
    )
    made = tables.with_tables(page)
    assert "old" not in made
    assert "| ours | 319 | 500 | 484 | 3.46 | 2,000 |" in made
    assert "| **times** | **2.65** | **2.00** | **0.21** | | |" in made
    assert "nothing else to do | | 700 | | | |" in made
    assert "(2.86 ms each), serve (0.11) and only ask (0.20) | | 633 | | 3.16 | |" in made
    assert "| ours, share of the lowest bound | | 0.71 | | | |" in made
    assert made.startswith("# A page\n\n<!-- from") and made.endswith("<!-- end -->\n\nmore\n")
    assert tables.with_tables(made) == made


def test_a_table_that_a_script_printed_is_put_between_its_marks_as_it_was(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    parser = argparse.ArgumentParser()
    results.add_save_option(parser, "hosts")
    table = results.Table(("host", "requests/s"), [["slow", "2.07"], ["fast", "23.5"]])
    results.show_table(table, parser.parse_args([]).save, workers=100)
    assert not list(tmp_path.iterdir())
    printed = capsys.readouterr().out
    assert printed == ("\n| host | requests/s |\n| --- | --- |\n| slow | 2.07 |\n| fast | 23.5 |\n")
    for words, name in ((["--save"], "hosts"), (["--save", "hosts_ray"], "hosts_ray")):
        save = parser.parse_args(words).save
        results.show_table(table, save, runner="ray", workers=1000, latency_seconds=0.1)
        made = tables.with_tables(f"<!-- from benchmarks/results/{name}.json -->\n<!-- end -->")
        assert printed.strip() in made
        assert "; runner ray, workers 1,000, latency seconds 0.1." in made


def test_what_is_run_in_one_go_is_there_and_knows_a_quick_way() -> None:
    found = everything.scripts()
    assert "benchmarks/fetch/run.py" in found
    assert "benchmarks/tables.py" not in found
    assert {command[0] for command in everything.MEASURED.values()} <= set(found)
