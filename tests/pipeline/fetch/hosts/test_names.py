import pytest

from pipeline.fetch.hosts.names import NameCache, Resolution


def found(expires_at, error=None):
    return Resolution(expires_at, [], error)


def test_a_name_is_known_until_its_time_is_over(monkeypatch):
    monkeypatch.setattr("pipeline.fetch.hosts.names.time.monotonic", lambda: 100.0)
    cache = NameCache()
    assert cache.get("a.example") is None
    cache.keep("a.example", found(100.0))
    assert cache.get("a.example") == found(100.0)
    cache.keep("a.example", found(99.9))
    assert cache.get("a.example") is None


def test_the_longest_known_names_give_way(monkeypatch):
    monkeypatch.setattr("pipeline.fetch.hosts.names.MAX_NAMES", 2)
    cache = NameCache()
    forever = found(float("inf"))
    for name in ("a", "b", "a", "c"):
        cache.keep(name, forever)
    assert [cache.get(name) for name in "abc"] == [forever, None, forever]


@pytest.mark.parametrize("error", [None, "no such name"])
def test_a_failure_is_an_answer_too(error):
    cache = NameCache()
    cache.keep("a", found(float("inf"), error))
    resolution = cache.get("a")
    assert resolution is not None and resolution.error == error
