"""The card of a model."""

import json

import pytest

from tests.training.model.tiny_models import model_config
from training.model.published.card import run_name, write_card


@pytest.fixture
def run(tmp_path):
    """Returns the model folder of a run that says how it was trained."""
    folder = tmp_path / "my-run"
    (folder / "model").mkdir(parents=True)
    config = {"max_steps": 7, "data": {"workers": 0}, "model": {"language_model": "/home/me/llm"}}
    said = {"config": {**config, "secret": "not told"}, "data": [str(tmp_path / "pairs")]}
    (folder / "config.json").write_text(json.dumps(said))
    lines = [{"train/loss": 1.0}, {"validation/loss": 2.5}, {"validation/loss": 1.23456}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    return folder / "model"


def card_of(tmp_path, model, **settings):
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    given = {"has_code": True, "evaluation": None, **settings}
    write_card(out, model, model_config(), **given)
    return (out / "README.md").read_text()


def test_a_card_says_what_the_model_is_and_how_its_run_went(run, tmp_path):
    text = card_of(tmp_path, run)
    assert "# my-run\n" in text and "alignment-adaptive" in text
    assert "| alignment levels | 4 |" in text
    assert '"max_steps": 7' in text and "not told" not in text
    assert "| validation/loss | 1.235 |" in text
    assert "- `pairs`: its manifest is not at hand" in text
    assert "trust_remote_code=True" in text
    assert str(tmp_path) not in text and "/home/me" not in text and '"llm"' in text


def test_a_model_without_its_run_says_so(tmp_path):
    (tmp_path / "lone").mkdir()
    text = card_of(tmp_path, tmp_path / "lone", has_code=False)
    assert text.count("Not known: the model does not lie in its run.") == 2
    assert "None measured." in text and "trust_remote_code" not in text


def test_results_of_an_evaluation_are_taken_along(run, tmp_path):
    (tmp_path / "results.md").write_text("| pope | 85.1 |")
    assert "| pope | 85.1 |" in card_of(tmp_path, run, evaluation=tmp_path)


def test_a_model_is_called_as_its_run_or_as_its_folder(run, tmp_path):
    assert run_name(run) == "my-run"
    assert run_name(tmp_path / "lone") == "lone"
