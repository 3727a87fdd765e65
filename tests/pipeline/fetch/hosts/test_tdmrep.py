import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.fetch.hosts.tdmrep import is_reserved, matches, parse_tdmrep
from schemas.errors import RejectReason
from tests.downloads import download, settings
from tests.web_server import WebServer

IMAGE = b"\xff\xd8\xff" + bytes(200)


def test_tdmrep_reserves_paths_and_is_asked_once(web_server: WebServer) -> None:
    rules = [
        {"location": "/photos/*", "tdm-reservation": 1},
        {"location": "/", "tdm-reservation": 0},
    ]
    web_server.serve("/.well-known/tdmrep.json", json.dumps(rules).encode())
    urls = [web_server.serve(path, IMAGE) for path in ("/a", "/photos/a")]
    assert download(settings(web_server), *urls) == [None, RejectReason.TDM_RESERVED]
    assert web_server.paths().count("/.well-known/tdmrep.json") == 1
    assert download(settings(web_server, respects_tdm=False), *urls) == [None, None]


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("/", "/anything", True),
        ("/a", "/b", False),
        ("/a/*.jpg", "/a/b/c.jpg?x=1", True),
        ("/a/*.jpg$", "/a/b/c.jpg", True),
        ("/a/*.jpg$", "/a/b/c.jpg?x=1", False),
        ("/*/*/c", "/a/c", False),
        ("/a$", "/a", True),
        ("/a$", "/ab", False),
        ("/foo-%24", "/foo-$", True),
        ("/foo-%24", "/foo-", False),
        ("/%7Euser/*.jpg", "/~user/a.jpg", True),
        ("/~user/", "/%7euser/a.jpg", True),
        ("/a%2Fb", "/a/b", False),
        ("/a%2Ab", "/axb", False),
    ],
)
def test_path_patterns_match_as_in_robots_txt(pattern: str, path: str, expected: bool) -> None:
    assert matches(pattern, path) is expected


@pytest.mark.parametrize("text", ["", "{}", "[1, 2]", "null", "[" * 100_000, '[{"x": 1}]'])
def test_a_broken_tdmrep_reserves_nothing(text: str) -> None:
    assert not is_reserved(parse_tdmrep(text), "/a")


JSON_RULES = st.lists(
    st.fixed_dictionaries(
        {"location": st.sampled_from(["/a", "/b*", "/c$"])},
        optional={"tdm-reservation": st.just(1)},
    ),
    max_size=5,
)


@given(JSON_RULES, st.sampled_from([None, 0, 2]), st.integers(0, 400))
def test_a_cut_tdmrep_gives_the_rules_before_the_cut(
    rules: list[dict[str, Any]], indent: int | None, length: int
) -> None:
    text = json.dumps(rules, indent=indent)
    whole, part = parse_tdmrep(text), parse_tdmrep(text[:length])
    assert whole == tuple((rule["location"], "tdm-reservation" in rule) for rule in rules)
    assert part == whole[: text[:length].count("}")]


def test_the_first_pattern_of_tdmrep_that_matches_decides() -> None:
    rules = parse_tdmrep(
        '[{"location": "/a/b", "tdm-reservation": 0}, {"location": "/a", "tdm-reservation": 1},'
        ' {"location": "/a/c", "tdm-reservation": 0}, {"location": 5, "tdm-reservation": 1}]'
    )
    assert is_reserved(rules, "/a/x")
    assert not is_reserved(rules, "/a/b/x")
    assert is_reserved(rules, "/a/c")
    assert not is_reserved(rules, "/b")
