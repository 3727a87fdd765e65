"""What a server refuses is not asked again: a page for good, a host for a while."""

import time

import pytest

from pipeline.config import FetchConfig
from pipeline.fetch.hosts.memory import MAX_REFUSAL_SECONDS, HostMemory
from schemas.errors import RejectReason, SampleRejected
from tests.pipeline.fetch.hosts.test_memory import IMAGE, download, settings
from tests.web_server import WebServer, response

OPT_OUTS = {
    "noai": ({"X-Robots-Tag": "noai"}, RejectReason.OPTED_OUT_BY_HEADER),
    "reserved": ({"TDM-Reservation": "1"}, RejectReason.TDM_RESERVED),
}
ORIGIN = "http://a.test"


@pytest.mark.slow
@pytest.mark.parametrize("status", [200, 302, 404, 429, 500, 503])
@pytest.mark.parametrize("kind", OPT_OUTS)
def test_an_opt_out_holds_whatever_the_status_and_is_not_asked_again(
    kind: str, status: int, web_server: WebServer
) -> None:
    headers, reason = OPT_OUTS[kind]
    url = web_server.serve("/a", IMAGE, headers, status)
    config = settings(web_server, retries=2)
    memory = HostMemory(config)
    for _ in range(2):
        assert download(config, url, memory=memory) == [reason]
    assert web_server.paths().count("/a") == 1


def test_rows_of_one_page_that_opts_out_ask_it_once_also_at_the_same_time(
    web_server: WebServer,
) -> None:
    url = web_server.serve("/a", IMAGE, {"X-Robots-Tag": "noai"})
    way = web_server.redirect("/way", "/a")
    found = download(settings(web_server), url, url, way, url)
    assert found == [RejectReason.OPTED_OUT_BY_HEADER] * 4
    assert web_server.paths().count("/a") == 1


def test_rows_of_one_page_that_may_be_taken_are_all_kept(web_server: WebServer) -> None:
    url = web_server.serve("/a", IMAGE)
    assert download(settings(web_server), *[url] * 20) == [None] * 20


def test_rows_of_one_page_that_hangs_end_each_at_its_own_deadline(web_server: WebServer) -> None:
    url = web_server.hang("/a")
    config = settings(web_server, timeout_seconds=0.3, respects_robots=False, respects_tdm=False)
    assert download(config, url, url, url) == [RejectReason.TIMED_OUT] * 3


def test_the_memory_of_opt_outs_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.fetch.hosts.memory.MAX_OPT_OUTS", 10)
    memory = HostMemory(FetchConfig())
    rejected = SampleRejected(RejectReason.TDM_RESERVED, "TDM-Reservation: 1")
    for number in range(11):
        memory.keep_opt_out(f"{ORIGIN}/{number}", rejected)
    memory.require_not_opted_out(f"{ORIGIN}/0")
    with pytest.raises(SampleRejected):
        memory.require_not_opted_out(f"{ORIGIN}/1")


@pytest.mark.slow
@pytest.mark.parametrize("status", [429, 503])
def test_a_refusal_that_names_no_time_slows_all_requests_to_the_host(
    status: int, web_server: WebServer
) -> None:
    url = web_server.serve("/a", b"", status=status)
    config = settings(web_server, respects_robots=False, respects_tdm=False)
    memory = HostMemory(config)
    before = time.monotonic()
    origin = url.removesuffix("/a")
    download(config, url, memory=memory)
    assert memory.host(origin).paused_until >= before + 1
    download(config, url, memory=memory)
    assert time.monotonic() - before >= 0.99
    assert memory.host(origin).paused_until >= before + 3


def test_refusals_pause_twice_as_long_each_time_up_to_a_bound_and_an_answer_ends_that() -> None:
    memory = HostMemory(FetchConfig())
    host = memory.host(ORIGIN)
    for pause in (1, 2, 4, 8, 16, 32, *[MAX_REFUSAL_SECONDS] * 3):
        host.paused_until = 0.0
        before = time.monotonic()
        memory.refused(ORIGIN)
        memory.refused(ORIGIN)  # was on its way
        memory.accepted(ORIGIN)  # so was this
        assert before + pause <= host.paused_until <= time.monotonic() + pause
    host.paused_until = 0.0
    memory.accepted(ORIGIN)
    assert host.refusals == 0


@pytest.mark.slow
def test_a_refusal_that_passes_costs_no_image(web_server: WebServer) -> None:
    url = web_server.sequence("/a", [response(b"", status=429), response(IMAGE)])
    assert download(settings(web_server, retries=1), url) == [None]
