import shutil
import socket
import threading
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import uvicorn
from starlette.testclient import TestClient

from pipeline.browse.page import Page
from pipeline.browse.rows import DatasetRows
from pipeline.dataset.rejections import rejection, write_rejections
from pipeline.select.run import Selection, make_selection
from schemas.columns import read_table
from schemas.errors import ConfigError, DatasetError, RejectReason, SampleRejected
from schemas.records import FETCHED_SCHEMA, TRAIN_SCHEMA, CaptionedImage
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from tests.curations import quiet_console
from tests.datasets import add_signal, finish, write_dataset

HOSTILE = "<script>alert(1)</script> \x1b[31m"
PATIENCE = 120_000
"""Milliseconds that a browser may take on a busy machine."""
WIDTHS_OF_THREE = """() => Promise.all(
    [...document.images].slice(0, 3).map(image => image.decode().then(() => image.naturalWidth))
)"""
"""The page allows no script, so that a condition cannot be waited for; a promise can."""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A dataset of 38 kept rows, two near-duplicates and two pictures that are gone."""
    root = tmp_path_factory.mktemp("browse") / "data"
    write_dataset(root)
    finish(root)
    layout = DatasetLayout(str(root))
    with Path(layout.fetched(0, "parquet")).open("rb") as file:
        row = read_table(file, FETCHED_SCHEMA, ["key", "url", "source"]).slice(0, 1).to_pylist()[0]
    pair = CaptionedImage(**row, caption=HOSTILE, conversations=None, expected_hash=None)
    kept = pq.read_table(layout.train(0, "parquet"))["key"][0].as_py()
    known = {"kept_key": kept, "clip_score": 0.1, "kept_cosine": 0.98, "kept_look": 12.5}
    rejected = SampleRejected(RejectReason.NEAR_DUPLICATE, "nearly the same")
    write_rejections(layout, Stage.DEDUPLICATE, 0, [rejection(pair, rejected, **known)], "d")
    return root


@pytest.fixture(scope="module")
def rows(root):
    rows = DatasetRows(str(root))
    yield rows
    rows.close()


@pytest.fixture(scope="module")
def client(rows):
    return TestClient(Page(rows).app(), base_url="http://127.0.0.1")


def test_every_row_is_shown_once_kept_or_not(rows):
    everything = rows.count("")
    seen = [row for page in range(5) for row in rows.page("", "score, best first", page, size=10)]
    assert len(seen) == everything
    assert len({(row["filename"], row["file_row_number"]) for row in seen}) == everything
    assert rows.count("reason is null") == 38
    assert sum(row["n"] for row in rows.reasons()) == everything - 38


def test_an_order_holds_through_the_pages(rows):
    scores = [
        row["clip_score"]
        for page in range(4)
        for row in rows.page("reason is null", "score, worst first", page, size=10)
    ]
    assert scores == sorted(scores)
    assert len(scores) == 38


def test_filters_become_the_condition_that_select_takes(client, root, rows):
    text = client.get("/?level_from=2&level_to=3&text=NUMBER+1&host=images.example").text
    number = rows.count(
        "alignment_level in (2, 3) and lower(caption) like '%number 1%' and reason is null"
    )
    assert 0 < number < 19
    assert f"<h1>{number} row" in text
    assert f"select {root} --where" in text.replace("&#39;", "'")
    assert "alignment_level &gt;= 2 and alignment_level &lt;= 3" in text


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("where=caption+=", "no SQL condition"),
        ("where=1)+or+(1", "no SQL condition"),
        ("where=key+in+(select+1)", "a subquery"),
        ("where=read_text('/etc/passwd')+is+null", "the condition"),
        ("level_from=two", "give a number"),
        ("where=colour+%3D+1", "colour"),
    ],
)
def test_a_condition_that_is_none_is_told(client, query, words):
    answer = client.get(f"/?{query}")
    assert answer.status_code == 400
    assert words in answer.text
    assert "root:" not in answer.text


def test_pictures_come_from_their_place_in_the_tars(client, rows):
    for row in [*rows.page("reason is null", "", 0, 3), *rows.page("stage = 'deduplicate'", "", 0)]:
        folder = row["filename"].rsplit("/", 2)[1]
        shard = int(row["filename"].rsplit("/", 1)[1].split(".")[0])
        answer = client.get(f"/picture/{folder}/{shard}/{row['file_row_number']}")
        assert answer.headers["content-type"] == "image/jpeg"
        assert answer.content.startswith(b"\xff\xd8")
    for gone in ("/picture/fetch/0/0", "/picture/train/9/0", "/picture/train/0/9999"):
        assert client.get(gone).status_code == 404


def test_duplicates_stand_beside_what_stayed_with_both_distances(client):
    text = client.get("/duplicates").text
    assert text.index('<figure class="kept">') < text.index("cosine 0.9800")
    assert "look 12.5" in text


def test_both_sides_of_an_edge_are_shown_nearest_first(rows, client):
    below, above = rows.edge(2, size=5)
    low, high = ([row["clip_score"] for row in side] for side in (below, above))
    assert low == sorted(low, reverse=True)
    assert high == sorted(high)
    assert low[0] <= high[0]
    assert "The worst of level 3" in client.get("/edges?level=2").text


def taste_of(score: float) -> float:
    """Returns a signal whose ranks give the levels of `write_levelled`, reversed within each."""
    level, rest = divmod(4 * (score + 0.3), 1)
    return level + (1 - rest) / 2


def test_edges_and_orders_and_conditions_go_by_the_signal_that_decides_the_levels(tmp_path):
    root = tmp_path / "data"
    write_dataset(root)
    add_signal(root, "taste", taste_of)
    finish(root, by="taste")
    rows = DatasetRows(str(root))
    below, above = rows.edge(2, size=50)
    for side, is_falling in ((below, True), (above, False)):
        tastes = [row["taste"] for row in side]
        assert tastes == sorted(tastes, reverse=is_falling)
        scores = [row["clip_score"] for row in side]
        assert scores == sorted(scores, reverse=not is_falling) and len(set(scores)) > 3
    client = TestClient(Page(rows).app(), base_url="http://127.0.0.1")
    assert "By taste, whose ranks decide" in client.get("/edges?level=2").text
    highest = rows.page("", "taste, highest first", 0)
    assert highest[0]["taste"] == max(row["taste"] for row in highest[:38])
    shown = client.get("/?where=taste+>+2&state=all").text
    assert f"<h1>{rows.count('taste > 2')} row" in shown and rows.count("taste > 2") > 5
    assert ">taste, lowest first</option>" in shown
    assert client.get("/?state=rejected").status_code == 200  # rows without the column
    rows.close()


def test_edges_between_levels_by_a_mean_of_ranks_are_in_the_order_of_that_mean(tmp_path):
    root = tmp_path / "data"
    write_dataset(root)
    add_signal(root, "taste", lambda score: (7 * score) % 1)
    finish(root, by="rank_mean:clip_score,taste:1,3")
    rows = DatasetRows(str(root))
    kept = rows.page("reason is null", "", 0)
    ranks = {
        name: {row["key"]: n for n, row in enumerate(sorted(kept, key=lambda row: row[name]))}
        for name in ("clip_score", "taste")
    }
    for side, is_falling in zip(rows.edge(2, size=50), (True, False), strict=True):
        means = [ranks["clip_score"][row["key"]] + 3 * ranks["taste"][row["key"]] for row in side]
        assert means == sorted(means, reverse=is_falling) and len(means) > 3
    client = TestClient(Page(rows).app(), base_url="http://127.0.0.1")
    assert "By rank_mean:clip_score,taste:1,3" in client.get("/edges?level=2").text
    rows.close()
    with pytest.raises(ConfigError, match="by ranks over all pairs: leave out --cut-levels"):
        chosen = Selection(command="select", parents=(str(root),), num_levels=3)
        make_selection(chosen, str(tmp_path / "out"), quiet_console())


def test_what_comes_from_the_web_is_text_and_nothing_is_loaded_from_there(client, rows):
    (row,) = rows.page("stage = 'deduplicate' and kept_look is not null", "", 0)
    for path in ("/?state=rejected", "/duplicates", f"/sample/{row['key']}"):
        answer = client.get(path)
        assert "<script>" not in answer.text
        assert "\x1b" not in answer.text
        assert "&lt;script&gt;" in answer.text
        assert 'src="http' not in answer.text
        assert "default-src 'none'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", ""])
def test_another_host_name_gets_nothing(client, host):
    assert client.get("/", headers={"host": host}).status_code == 400


def test_a_dataset_that_is_not_here_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="nothing to look at"):
        DatasetRows(str(tmp_path))
    with pytest.raises(ConfigError, match="copy s3://bucket/data first"):
        DatasetRows("s3://bucket/data")


def test_tables_from_before_the_distances_were_kept_can_be_browsed(root, tmp_path):
    shutil.copytree(root, tmp_path / "old")
    path = tmp_path / "old/rejected/deduplicate/00000.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["kept_cosine", "kept_look"]), path)
    rows = DatasetRows(str(tmp_path / "old"))
    assert all(row["kept_look"] is None for row in rows.page("reason is not null", "", 0))
    assert set(TRAIN_SCHEMA.names) <= set(rows.page("", "", 0)[0])
    rows.close()


@contextmanager
def served(app):
    """Yields the address of the page, served from a thread."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_browser_shows_it_wide_and_narrow_light_and_dark(rows, tmp_path):
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium or google-chrome on this machine")
    playwright = pytest.importorskip("playwright.sync_api")
    with served(Page(rows).app()) as address, playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox", "--disable-background-networking"],
            timeout=PATIENCE,
        )
        foreign: list[str] = []
        for width, scheme in ((1280, "light"), (390, "dark")):
            page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            page.on("request", lambda request: foreign.append(request.url))
            page.set_default_timeout(PATIENCE)
            page.goto(f"{address}/?order=score%2C+best+first")
            page.fill("input[name=level_from]", "4")
            page.click("button")
            wanted = f"{rows.count('alignment_level >= 4')} rows"
            playwright.expect(page.locator("h1")).to_have_text(wanted, timeout=PATIENCE)
            assert page.evaluate(WIDTHS_OF_THREE) == [24, 24, 24]
            assert page.evaluate("document.documentElement.scrollWidth") == width
            ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (int(ground[4:].split(",")[0]) < 64) == (scheme == "dark")
            page.screenshot(path=tmp_path / f"{scheme}.png")
            page.close()
        browser.close()
    assert all(url.startswith(address) for url in foreign)
