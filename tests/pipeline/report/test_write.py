import json
import shutil
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from pipeline.config import CurationConfig, FetchConfig, PackConfig
from pipeline.dataset.train_shards import write_index
from pipeline.pack.shard import pack_shard
from pipeline.report.page import politeness_rows
from pipeline.report.write import write_report
from schemas.errors import DatasetError
from schemas.manifest import LevelDrift, Manifest
from schemas.records import TRAIN_SCHEMA
from schemas.shards import DatasetLayout
from scoring.config import LevelConfig
from tests.curations import curate, write_pairs
from tests.datasets import jpeg, plan_train_shards, write_dataset
from tests.web_server import ALLOWED_HOST


def packed(root, is_scored: bool = True) -> tuple[DatasetLayout, CurationConfig]:
    """Returns a dataset that is done but for its report."""
    write_dataset(root, is_scored=is_scored)
    layout = DatasetLayout(str(root))
    config = CurationConfig(
        pack=PackConfig(samples_per_shard=15),
        levels=LevelConfig(num_levels=4),
        is_scored=is_scored,
    )
    plans = plan_train_shards(layout, [0, 1], config.pack, has_levels=is_scored)
    write_index(layout, [pack_shard(layout, plan, config.pack) for plan in plans])
    return layout, config


def write_drift(layout: DatasetLayout) -> None:
    """Writes what the level stage says of data that old edges levelled."""
    drift = {
        "expected_counts": [1200] * 4,
        "counts": [10, 9, 9, 10],
        "population_stability_index": 0.0625,
    }
    Path(layout.edges).write_text(json.dumps({"drift": drift}))


class Page(HTMLParser):
    """What a page shows and refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.sources: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.words += data.split()


def test_the_manifest_says_where_every_row_went(tmp_path):
    manifest = write_report(*packed(tmp_path))
    assert manifest.rows_in == 42
    assert manifest.kept == 38
    assert manifest.rejected == {"http_status": 2, "near_duplicate": 2}
    assert [(name, counts.rows_in, counts.kept) for name, counts in manifest.stages.items()] == [
        ("read", 42, 42),
        ("fetch", 42, 40),
        ("score", 40, 40),
        ("deduplicate", 40, 38),
        ("level", 38, 38),
        ("pack", 38, 38),
    ]


def test_the_manifest_on_disk_is_the_one_returned(tmp_path):
    manifest = write_report(*packed(tmp_path))
    assert Manifest.from_json((tmp_path / "manifest.json").read_text()) == manifest
    assert manifest.model == {"model": "tiny", "precision": "fp32"}
    assert [shard.samples for shard in manifest.shards] == [15, 15, 8]


def test_levels_have_their_counts_and_score_ranges(tmp_path):
    levels = write_report(*packed(tmp_path)).level_edges
    assert [level["level"] for level in levels] == [1, 2, 3, 4]
    assert sum(level["count"] for level in levels) == 38
    assert all(level["lowest_score"] <= level["highest_score"] for level in levels)
    for lower, higher in pairwise(levels):
        assert lower["highest_score"] <= higher["lowest_score"]


def test_captions_that_the_model_could_not_read_to_their_end_are_counted(tmp_path):
    manifest = write_report(*packed(tmp_path))
    assert manifest.truncated_captions == 4
    said = " ".join(Page((tmp_path / "report.html").read_text()).words)
    assert "4 of 40 scored captions were longer than the model's context" in said


def test_drift_against_old_edges_is_shown_level_by_level(tmp_path):
    layout, config = packed(tmp_path)
    write_drift(layout)
    manifest = write_report(layout, config)
    assert manifest.level_drift == LevelDrift(
        expected_counts=[1200, 1200, 1200, 1200],
        counts=[10, 9, 9, 10],
        population_stability_index=0.0625,
    )
    assert Manifest.from_json((tmp_path / "manifest.json").read_text()) == manifest
    said = " ".join(Page((tmp_path / "report.html").read_text()).words)
    assert "1 1,200 25.0 % 10 26.3 % 2 1,200 25.0 % 9 23.7 %" in said
    assert "Population stability index 0.0625" in said


def test_edges_cut_in_the_data_itself_have_no_drift(tmp_path):
    manifest = write_report(*packed(tmp_path))
    assert manifest.level_drift is None
    assert "Drift" not in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_the_same_dataset_has_the_same_manifest_and_metadata(tmp_path):
    for name in ("one", "two"):
        write_report(*packed(tmp_path / name))
    for name in ("manifest.json", "croissant.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_the_page_needs_no_other_file_and_shows_pictures_of_every_level(tmp_path):
    write_report(*packed(tmp_path))
    page = Page((tmp_path / "report.html").read_text())
    assert len(page.sources) == 4 * 8
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.sources)
    assert {"near_duplicate", "http_status", "picture"} <= set(page.words)


def test_captions_cannot_put_markup_into_the_page(tmp_path, monkeypatch):
    caption = "<script>alert('x')</script> & [red]"
    monkeypatch.setattr("tests.datasets.CAPTION", caption + " {number}")
    write_report(*packed(tmp_path))
    text = (tmp_path / "report.html").read_text()
    assert "<script" not in text
    assert "&lt;script&gt;" in text


def test_instruction_samples_are_reported_without_levels(tmp_path):
    manifest = write_report(*packed(tmp_path, is_scored=False))
    assert (manifest.num_levels, manifest.level_edges, manifest.model) == (None, None, None)
    assert manifest.truncated_captions is None
    assert list(manifest.stages) == ["read", "fetch", "pack"]
    assert manifest.kept == 40
    page = Page((tmp_path / "report.html").read_text())
    assert "alone" in page.words


def test_an_unfinished_dataset_gets_no_report(tmp_path):
    layout, config = packed(tmp_path)
    shutil.rmtree(tmp_path / "levelled")
    shutil.rmtree(tmp_path / "rejected" / "level")
    with pytest.raises(DatasetError, match="run `level` first"):
        write_report(layout, config)
    with pytest.raises(DatasetError, match="has no pairs: the input has no rows"):
        write_report(DatasetLayout(str(tmp_path / "nothing")), config)


def test_counts_that_do_not_balance_are_no_report(tmp_path):
    layout, config = packed(tmp_path)
    (tmp_path / "rejected" / "deduplicate" / "00001.parquet").unlink()
    with pytest.raises(DatasetError, match="do not balance"):
        write_report(layout, config)
    assert not (tmp_path / "manifest.json").exists()


def test_croissant_metadata_describes_every_column_and_file(tmp_path):
    manifest = write_report(*packed(tmp_path))
    values = json.loads((tmp_path / "croissant.json").read_text())
    fields = values["recordSet"][0]["field"]
    assert [field["name"] for field in fields] == TRAIN_SCHEMA.names
    files = {file["@id"]: file for file in values["distribution"]}
    for shard in manifest.shards:
        assert files[f"train/{shard.name}.tar"]["sha256"] == shard.tar_sha256
        assert (tmp_path / files[f"train/{shard.name}.parquet"]["contentUrl"]).exists()


@pytest.mark.slow
@pytest.mark.parametrize("is_polite", [True, False])
def test_the_report_counts_what_each_rule_of_hosts_left_out_and_says_whether_it_was_followed(
    web_server, tmp_path, is_polite
):
    robots = b"User-agent: *\nDisallow: /private/\n"
    web_server.serve("/robots.txt", robots)
    urls = [web_server.serve(f"/{number}.jpg", jpeg(number)) for number in range(3)]
    urls += [web_server.serve(f"/private/{number}.jpg", jpeg(number + 9)) for number in range(4)]
    no_ai = {"X-Robots-Tag": "noai"}
    urls += [web_server.serve(f"/no/{number}.jpg", jpeg(number + 99), no_ai) for number in range(2)]
    urls.append(web_server.serve("/tdm.jpg", jpeg(999), {"TDM-Reservation": "1"}))
    pairs = write_pairs(tmp_path / "input", [(url, url.rsplit("/", 1)[-1]) for url in urls])
    config = CurationConfig(
        fetch=FetchConfig(
            allow_networks=(f"{ALLOWED_HOST}/32",),
            allow_ports=(web_server.port,),
            decode_processes=1,
            respects_robots=is_polite,
            respects_robots_tag=is_polite,
            respects_tdm=is_polite,
        ),
        is_scored=False,
    )
    manifest, _ = curate(config, pairs, tmp_path / "out")
    names = ("respects_robots", "respects_robots_tag", "respects_tdm")
    assert [manifest.config["fetch"][name] for name in names] == [is_polite] * 3
    assert [row["count"] for row in politeness_rows(manifest)] == (
        [4, 0, 2, 1] if is_polite else [0, 0, 0, 0]
    )
    said = " ".join(Page((tmp_path / "out" / "report.html").read_text()).words)
    answer, counts = ("yes", (4, 2, 1)) if is_polite else ("no", (0, 0, 0))
    assert f"robots.txt {answer} fetch.respects_robots {counts[0]}" in said
    assert f"X-Robots-Tag {answer} fetch.respects_robots_tag {counts[1]}" in said
    assert f"tdmrep.json {answer} fetch.respects_tdm {counts[2]}" in said
