"""Controls of signals from stored embeddings, as report and inspect show them."""

import io

import pytest

from pipeline.report.controls import read_controls
from pipeline.report.inspect import signals_table
from schemas.shards import DatasetLayout
from schemas.terminal import Console
from tests.pipeline.report.test_control import unit, urls, write
from tests.signal_tables import SIGNALS, controls, write_scored


@pytest.fixture
def layout(tmp_path):
    return DatasetLayout(str(tmp_path / "data"))


def test_random_captions_warn_for_every_signal_of_the_pair(layout, signals):
    write_scored(layout, signals, unit(600, 1))
    found = {one.name: one for one in controls(layout).signals}
    assert tuple(found) == SIGNALS
    for name in ("agreement", "negclip", "neighbours"):
        assert found[name].control.beats_ratio == pytest.approx(0.5, abs=0.04)
        assert found[name].control.auc == pytest.approx(0.5, abs=0.04)
        assert f"{name} tells nothing of these pairs" in found[name].control.warning
        assert found[name].control.pairs == 600
    assert "looks at the picture alone" in found["taste"].no_control
    assert "looks at the caption alone" in found["brevity"].no_control
    assert "has_control" in found["bound"].no_control
    for by in (
        "negclip",
        "rank_mean:agreement,negclip",
        "rank_mean:clip_score,negclip,taste:1,1,9",
    ):
        decided = controls(layout, by)
        assert decided.levels.signal == by
        assert decided.levels.beats_ratio == pytest.approx(0.5, abs=0.04)
        assert decided.warnings[0].startswith("The levels of this dataset mean nothing: by ")
        assert decided.warnings[1].startswith("clip_score tells nothing of these pairs")


def test_right_captions_beat_others_by_every_signal_of_the_pair(layout, signals):
    write_scored(layout, signals)
    for by in ("clip_score", "agreement", "rank_mean:clip_score,negclip"):
        found = controls(layout, by)
        assert found.warnings == []
        assert found.levels.beats_ratio > 0.99
        assert [one.signal for one in found.tables] == list(dict.fromkeys(["clip_score", by]))
        of_signals = [one.control for one in found.signals if one.control is not None]
        assert min(one.beats_ratio for one in of_signals) > 0.99
    said = io.StringIO()
    Console(file=said, width=200).print(signals_table(found.signals))
    assert "1.000 (" in said.getvalue() and "not about the pair" in said.getvalue()


def test_what_decides_the_levels_without_a_control_says_why(layout, signals):
    write_scored(layout, signals)
    for by, why in (
        ("taste", "it looks at the picture alone"),
        ("rank_mean:clip_score,bound", "bound: no control: its function says"),
    ):
        found = controls(layout, by)
        assert found.levels is None and why in found.no_levels
        assert found.known[by].histogram is None or found.known[by].histogram.exchanged is None


def test_a_dataset_without_signals_has_the_control_of_its_score_alone(layout):
    image = unit(40, 0)
    write(layout, 0, image, image, urls("a.example", 40))
    found = read_controls(layout, [], [])
    assert (found.signals, found.known) == ((), {})
    assert found.tables == [found.score] == [found.levels]
