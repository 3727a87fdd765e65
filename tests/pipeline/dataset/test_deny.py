import gzip
import hashlib
import os
from pathlib import Path

import apache_beam as beam
import pyarrow as pa
import pytest

from pipeline.config import CurationConfig, FetchConfig, ReadConfig
from pipeline.curate import curate
from pipeline.dataset.deny import DenyFiles, comparable, read_lists
from pipeline.dataset.progress import ShardProgress
from pipeline.dataset.worktimes import StepTime
from pipeline.fetch.shard import fetch_pairs, fetch_shard
from pipeline.fetch.sharing import FetchSession
from pipeline.fetch.spool import Spool
from pipeline.read.rows import RAW_SCHEMA, clean_rows
from schemas.errors import ConfigError, RejectReason
from schemas.records import Pair, pair_key
from schemas.shards import DatasetLayout
from schemas.stages import Stage
from tests.datasets import jpeg
from tests.fetches import config as fetch_config
from tests.fetches import fetched_rows, picture, rejected_rows, write_pairs
from tests.web_server import ALLOWED_HOST, WebServer

URL = "https://Bad.Example:443/a%20b/c.jpg?x=1#part"


def lists(folder: Path, **texts: str):
    """Returns lists read from files of these texts, by kind."""
    files = {}
    for kind, text in texts.items():
        path = folder / f"{kind}.txt"
        path.write_text(text)
        files[kind] = (str(path),)
    return read_lists(DenyFiles(**files))


def digest(algorithm: str, data: bytes) -> str:
    return hashlib.new(algorithm, data).hexdigest()


@pytest.mark.parametrize(
    "entry",
    [
        URL,
        "http://bad.example/a b/c.jpg?x=1",
        "bad.example/a%20b/c.jpg?x=1",
        digest("sha256", URL.encode()),
        digest("md5", URL.encode()).upper(),
        digest("sha1", URL.encode()),
    ],
)
def test_an_address_is_denied_however_it_is_spelt_or_hashed(tmp_path, entry):
    deny = lists(tmp_path, urls=f"# links\n\n{entry}\n")
    assert deny.reason_of_urls(["https://fine.example/", URL]) is RejectReason.DENIED_URL
    assert deny.reason_of_urls(["https://bad.example/a%20b/c.jpg?x=2"]) is None


def test_a_domain_stands_for_all_hosts_in_it(tmp_path):
    deny = lists(tmp_path, hosts="*.bad.example\nworse.example\n")
    for url in ("http://bad.example/", "https://cdn.BAD.example/x", "http://worse.example:81/"):
        assert deny.reason_of_urls([url]) is RejectReason.DENIED_HOST
    for url in ("http://notbad.example/", "http://example/", "http://bad.example.org/", "x.png"):
        assert deny.reason_of_urls([url]) is None


@pytest.mark.parametrize("host", ["bücher.example", "xn--bcher-kva.example"])
def test_a_host_is_the_same_in_letters_of_its_own_escaped_or_in_ascii(tmp_path, host):
    deny = lists(tmp_path, hosts=f"{host}\n")
    of_urls = lists(tmp_path, urls=f"http://{host}/a.jpg\n")
    for spelt in ("bücher", "BÜCHER", "b%C3%BCcher", "xn--bcher-kva"):
        url = f"https://{spelt}.example/a.jpg"
        assert deny.reason_of_urls([url]) is RejectReason.DENIED_HOST
        assert of_urls.reason_of_urls([url]) is RejectReason.DENIED_URL
    wide = "https://\uff58\uff4e--bcher-kva%2eexample/a.jpg"  # letters of full width
    assert deny.reason_of_urls([wide]) is RejectReason.DENIED_HOST


@pytest.mark.parametrize(
    "spelt", ["/a/b.jpg", "/a/./b.jpg", "/x/../a/b.jpg", "/a/x/%2e%2e/b.jpg", "/../a/b.jpg"]
)
def test_a_path_is_the_same_however_a_server_is_led_to_it(tmp_path, spelt):
    deny = lists(tmp_path, urls=f"\ufeffhttps://bad.example{spelt}\r\n")
    assert deny.reason_of_urls(["http://bad.example/a/b.jpg"]) is RejectReason.DENIED_URL
    deny = lists(tmp_path, urls="\ufeffbad.example/a/b.jpg")
    assert deny.reason_of_urls([f"http://bad.example{spelt}"]) is RejectReason.DENIED_URL
    for other in ("/a//b.jpg", "/b.jpg", "/a/b.jpg/", "/a/b.jpg/.", "/a/b.jpg/.."):
        assert deny.reason_of_urls([f"http://bad.example{other}"]) is None


def test_a_host_by_its_address_is_denied_and_one_that_never_matches_is_refused(tmp_path):
    deny = lists(tmp_path, hosts="[2001:db8::1]\n192.0.2.7\n")
    for url in ("http://[2001:db8::1]:8080/a", "http://192.0.2.7/a"):
        assert deny.reason_of_urls([url]) is RejectReason.DENIED_HOST
    for entry in ("bad.example:8080", "http://bad.example", "bad.example/x"):
        with pytest.raises(ConfigError, match=r"is no host: give it without scheme, port and"):
            lists(tmp_path, hosts=f"{entry}\n")


@pytest.mark.slow
def test_lists_may_be_long_packed_and_say_which_line_is_wrong(tmp_path):
    path = tmp_path / "long.txt.gz"
    with gzip.open(path, "wt") as file:
        file.writelines(f"https://a.example/{number}\n" for number in range(200_000))
    deny = read_lists(DenyFiles(urls=(str(path),)))
    assert len(deny.urls) == 200_000
    assert comparable("http://a.example/199999") in deny.urls
    assert comparable("http://a.example/200000") not in deny.urls
    with pytest.raises(ConfigError, match=r"hashes\.txt, line 2: 'not a hash' is no MD5"):
        lists(tmp_path, hashes=f"{'0' * 32}\nnot a hash\n")
    with pytest.raises(ConfigError, match=r"line 1: 'http://a/b' is no host"):
        lists(tmp_path, hosts="http://a/b\n")
    with pytest.raises(ConfigError, match="there is no deny-list"):
        read_lists(DenyFiles(urls=(str(tmp_path / "nowhere"),)))


def test_of_a_denied_row_only_key_and_reason_stay(tmp_path):
    rows = [
        {"url": "https://fine.example/1.jpg", "caption": "one"},
        {"url": "https://bad.example/2.jpg", "caption": "two"},
        {"url": "https://bad.example/3.jpg", "caption": ""},
        {
            "url": "https://fine.example/4.jpg",
            "caption": "",
            "more_urls": '["http://bad.example/"]',
        },
    ]
    raw = pa.Table.from_pylist(rows, schema=RAW_SCHEMA)
    found = clean_rows(raw, "in.csv", None, lists(tmp_path, hosts="bad.example")).to_pylist()
    assert [row["reason"] for row in found] == [
        None,
        "denied_host",
        "denied_host",
        "missing_caption",
    ]
    for row in found[1:3]:
        told = {name for name, value in row.items() if value is not None}
        assert told == {"key", "source", "reason", "detail"}
    assert found[1]["key"] == pair_key("https://bad.example/2.jpg", "two")
    assert found[0]["caption"] == "one"


def redirects(server: WebServer) -> dict[str, str]:
    """Returns addresses that lead to a denied one, each in another way."""
    bad = server.serve("/bad%20one.jpg", picture(1))
    server.redirect("/hop", bad)
    return {
        "at once": server.redirect("/a.jpg", bad, 301),
        "at last": server.redirect("/b.jpg", "/hop", 307),
        "otherwise spelt": server.redirect("/c.jpg", "bad%20on%65.jpg#part", 308),
        "with a name and a password": server.redirect("/d.jpg", bad.replace("://", "://me:pw@")),
    }


@pytest.mark.parametrize("way", ["at once", "at last", "otherwise spelt", "with a name"])
@pytest.mark.parametrize("is_host", [True, False])
def test_where_a_redirect_leads_is_denied_and_not_asked(tmp_path, web_server, way, is_host):
    url = next(url for name, url in redirects(web_server).items() if name.startswith(way))
    server, port = ALLOWED_HOST, web_server.port
    # The address is denied as the row's would be: here by its host, which the row's shares.
    text = f"{server}\n" if is_host else f"http://{server}:{port}/bad one.jpg\n"
    (tmp_path / "deny.txt").write_text(text)
    lists = (str(tmp_path / "deny.txt"),)
    files = DenyFiles(hosts=lists) if is_host else DenyFiles(urls=lists)
    layout, settings = DatasetLayout(str(tmp_path / "data")), fetch_config(web_server)
    fine = web_server.serve("/fine.jpg", picture(2))
    write_pairs(layout, [(url, "led astray"), (fine, "fine")])
    with FetchSession(settings, files) as session:
        fetch_shard(layout, 0, settings, session)
    assert [row["caption"] for row in fetched_rows(layout)] == ["fine"]
    (row,) = rejected_rows(layout)
    assert (row["reason"], row["stage"], row["is_retryable"]) == ("denied_redirect", "fetch", False)
    assert (row["url"], row["caption"], row["http_status"]) == (None, None, None)
    assert "bad" not in row["detail"]
    assert "/bad%20one.jpg" not in web_server.paths()
    kept = b"".join(path.read_bytes() for path in Path(layout.root, "fetched").iterdir())
    assert b"led astray" not in kept


def test_the_lists_of_a_curation_hold_for_its_redirects(tmp_path, web_server):
    url = redirects(web_server)["at last"]
    layout = DatasetLayout(str(tmp_path / "data"))
    write_pairs(layout, [(url, "led astray")])
    (tmp_path / "deny.txt").write_text(f"http://{ALLOWED_HOST}:{web_server.port}/bad one.jpg")
    read = ReadConfig(deny_urls=(str(tmp_path / "deny.txt"),))
    config = CurationConfig(read=read, fetch=fetch_config(web_server))
    with beam.Pipeline("FnApiRunner") as pipeline:
        curate(pipeline, layout, config, (Stage.FETCH,), shards=[0])
    assert [row["reason"] for row in rejected_rows(layout)] == ["denied_redirect"]


def test_a_host_whose_rules_lead_to_a_denied_address_is_left_alone_and_not_denied(
    tmp_path, web_server
):
    web_server.redirect("/robots.txt", "/bad.txt")
    web_server.serve("/bad.txt", b"User-agent: *\nAllow: /")
    (tmp_path / "deny.txt").write_text(f"http://{ALLOWED_HOST}:{web_server.port}/bad.txt")
    layout, settings = DatasetLayout(str(tmp_path / "data")), fetch_config(web_server)
    write_pairs(layout, [(web_server.serve("/fine.jpg", picture(2)), "fine")])
    files = DenyFiles(urls=(str(tmp_path / "deny.txt"),))
    with FetchSession(settings, files) as session:
        fetch_shard(layout, 0, settings, session)
    (row,) = rejected_rows(layout)
    assert (row["reason"], row["caption"]) == ("robots_unreachable", "fine")
    assert "/bad.txt" not in web_server.paths()


@pytest.mark.slow
def test_a_picture_is_denied_by_each_hash_of_its_file_and_by_that_of_its_pixels(tmp_path):
    files = [jpeg(number, 80, 60) for number in range(5)]
    pairs = []
    for number, data in enumerate(files):
        path = tmp_path / f"{number}.jpg"
        path.write_bytes(data)
        key = pair_key(str(path), "text")
        pairs.append(
            Pair(
                key=key,
                url=str(path),
                caption="text",
                conversations=None,
                source="in.csv",
                expected_hash=None,
            )
        )
    settings = {"allow_folders": (str(tmp_path),), "decode_processes": 1}

    def fetched(**more):
        layout = DatasetLayout(str(tmp_path / "data"))
        with (
            ShardProgress(layout, Stage.FETCH, 0, 5) as progress,
            Spool() as spool,
        ):
            config, work = FetchConfig(**settings, **more), StepTime(step="fetch")
            return fetch_pairs(pairs, config, None, spool, progress, work)

    kept, _ = fetched()
    pixel_hash = kept[3][1][0].image.pixel_hash
    names = ("md5", "sha1", "sha256")
    entries = [digest(name, data) for name, data in zip(names, files[:3], strict=True)]
    (tmp_path / "deny.txt").write_text("\n".join([*entries, pixel_hash]))
    kept, rejections = fetched(deny_hashes=(str(tmp_path / "deny.txt"),))
    assert [pair.url for pair, _ in kept] == [pairs[4].url]
    assert {row.reason for row in rejections} == {"denied_hash"}
    assert [(row.url, row.caption) for row in rejections] == [(None, None)] * 4
    assert [row.key for row in rejections] == [pair.key for pair in pairs[:4]]


def test_a_list_is_unpacked_by_what_it_is_and_not_by_its_name(tmp_path: Path) -> None:
    packed, plain = tmp_path / "packed.txt", tmp_path / "plain.gz"
    packed.write_bytes(gzip.compress(b"bad.test\r\n"))
    plain.write_bytes(b"worse.test\r\n\r\n# none.test\r\n")
    lists = read_lists(DenyFiles(hosts=(str(packed), str(plain))))
    assert len(lists.hosts) == 2
    assert {"bad.test", "worse.test"} <= {
        host for host in ("bad.test", "worse.test", "none.test") if host in lists.hosts
    }


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (gzip.compress(b"bad.test\n" * 1000)[:-12], "cannot be read to its end"),
        (b"\x1f\x8bno gzip", "cannot be read to its end"),
        ("bad.test\n".encode("utf-16"), "UTF-16"),
        (bytes(100), "no text"),
        (None, "cannot be read to its end"),
    ],
    ids=["cut short", "not packed", "UTF-16", "zeros", "a folder"],
)
def test_a_list_that_would_hold_for_a_part_alone_is_refused(
    tmp_path: Path, content: bytes | None, says: str
) -> None:
    path = tmp_path / "list.txt"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(ConfigError, match=says):
        read_lists(DenyFiles(hosts=(str(path),)))


def test_a_list_that_can_be_read_once_alone_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="is a pipe or a device, which can be read once"):
        read_lists(DenyFiles(hosts=(str(tmp_path / "pipe"),)))
