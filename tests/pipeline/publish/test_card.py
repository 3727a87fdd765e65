"""What the card of a publication tells."""

import io
from collections import Counter
from dataclasses import replace

import pytest
import yaml
from PIL import Image

from pipeline.publish.card import About, card, levels_picture
from pipeline.publish.samples import Counts
from schemas.manifest import Manifest, Parent
from tests.datasets import finish, write_dataset
from tests.publications import publish

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of mlcroissant


@pytest.mark.slow
def test_a_scored_dataset_has_its_levels_in_the_card(tmp_path):
    write_dataset(tmp_path / "data")
    finish(tmp_path / "data")
    out = publish(tmp_path / "data", tmp_path / "out", "parquet", size=None, ratio=0.0)
    assert not (out / "validation").exists()
    assert "| 4 |" in (out / "README.md").read_text()
    with Image.open(out / "levels.png") as picture:
        assert picture.width == 920


def test_the_card_tells_what_is_there(tars, tables, expected):
    for folder in (tars, tables):
        _, header, body = (folder / "README.md").read_text().split("---\n", 2)
        values = yaml.safe_load(header)
        assert values["license"] == "cc-by-4.0"
        told = {split["name"]: split["num_examples"] for split in values["dataset_info"]["splits"]}
        assert told == {split: len(rows) for split, rows in expected.items()}
        assert "## Opt-outs" in body and "| robots.txt | yes | 0 |" in body


@pytest.fixture
def manifest(dataset):
    return Manifest.from_json((dataset / "manifest.json").read_text())


@pytest.mark.parametrize(
    ("samples", "name"), [(999, "n<1K"), (1000, "1K<n<10K"), (10**9 - 1, "100M<n<1B")]
)
def test_the_hub_is_told_how_many_there_are(manifest, samples, name):
    counts = Counts(samples=Counter(train=samples))
    about = About(name="Cats: 1", form="parquet", licence="mit", language=("en", "de"))
    header = yaml.safe_load(card(about, manifest, counts, [], []).split("---\n")[1])
    assert header["size_categories"] == [name]
    assert (header["pretty_name"], header["language"]) == ("Cats: 1", ["en", "de"])
    assert header["task_categories"] == ["image-to-text"]


def test_an_opt_out_counts_as_followed_only_where_all_parents_followed_it(manifest):
    followed, ignored = (
        Parent(
            folder="parent",
            manifest_sha256="0" * 64,
            samples=1,
            taken=1,
            config={"fetch": manifest.config["fetch"] | {"respects_tdm": follows}},
        )
        for follows in (True, False)
    )
    about = About(name="x", form="webdataset", licence="mit", language=("en",))
    for parents, word in (([followed], "yes"), ([followed, ignored], "no")):
        told = replace(manifest, parents=parents, rejected={"tdm_reserved": 1234})
        text = card(about, told, Counts(samples=Counter(train=1)), [], [])
        assert f"| text-and-data-mining reservations | {word} | 1,234 |" in text


def test_the_card_hands_on_what_the_dataset_and_its_parents_warned_of(manifest):
    about = About(name="x", form="parquet", licence="mit", language=("en",))
    counts = Counts(samples=Counter(train=6), levels={1: [3, 0.0, 0.5], 2: [3, 0.5, 1.0]})
    warning = "The levels of this dataset mean nothing: \u2026"
    parent = Parent(
        folder="parent",
        manifest_sha256="0" * 64,
        samples=6,
        taken=6,
        config=manifest.config,
        warnings=[warning],
    )
    assert f"\n> {warning}\n\n![" in card(
        about, replace(manifest, parents=[parent]), counts, [], []
    )
    assert "\n> " not in card(
        about, replace(manifest, score_control=None, level_control=None), counts, [], []
    )


def test_levels_are_drawn_from_their_lowest_to_their_highest_score():
    counts = Counts(levels={1: [3, 0.0, 0.5], 2: [3, 0.5, 1.0]})
    image = Image.open(io.BytesIO(levels_picture(counts)))
    assert image.size == (920, 46 + 2 * 34 + 14)
    green = (0x2F, 0x7D, 0x6B)
    for row, (begin, end) in enumerate(((110, 380), (380, 650))):
        line = [x for x in range(920) if image.getpixel((x, 46 + 34 * row + 20)) == green]
        assert (line[0], line[-1]) == (begin, end)
