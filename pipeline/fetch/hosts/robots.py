"""What robots.txt and the headers of an answer forbid."""

import email.utils
import functools
import re
import time
from collections.abc import Mapping

from protego import Protego

from pipeline.config import FetchConfig
from schemas.errors import RejectReason, SampleRejected

OPT_OUTS = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})
"""X-Robots-Tag directives that leave an image out; none is short for noindex, nofollow."""

ADDRESSEE = re.compile("[A-Za-z_-]+")
"""What X-Robots-Tag may name as an agent: a product token. Source: RFC 9309, section 2.2.1."""

VALUED_DIRECTIVES = ("max-", "unavailable_after")
"""How X-Robots-Tag's directives with a value begin, which look like an agent's name.

Source: developers.google.com/search/docs/crawling-indexing/robots-meta-tag.
"""

MEMORY_PER_CHARACTER = 60
"""Bytes that a character of robots.txt takes as rules, at most.

Source: tracemalloc of Protego 0.7: 55 for 40,000 lines `Allow:/1f3a$`, 14 to 39 for usual ones.
"""

MEMORY_PER_HOST = 5_000

MAX_OPT_OUTS = 100_000
"""URLs that opted out and are remembered in a process, about 20 MB; the oldest are forgotten."""

MAX_CRAWL_DELAY_SECONDS = 30.0

USER_AGENT_LINE = re.compile(r"\s*user-agent\s*:([^#]*)", re.IGNORECASE)

USER_LINE = re.compile(r"\s*user", re.IGNORECASE)

RULE_LINE = re.compile(r"\s*(dis)?allow\s*:", re.IGNORECASE)


def check_headers(headers: Mapping[str, str], tags: list[str], config: FetchConfig) -> None:
    """Raises `SampleRejected` if an answer's headers opt out.

    Args:
        headers: of the answer; looked up whatever their case.
        tags: all values of X-Robots-Tag.
    """
    if config.respects_robots_tag and tags:
        found = sorted(opt_outs(tags, agent_token(config.user_agent)))
        if found:
            detail = f"X-Robots-Tag: {', '.join(found)}"
            raise SampleRejected(RejectReason.OPTED_OUT_BY_HEADER, detail)
    if config.respects_tdm and headers.get("TDM-Reservation", "").strip() == "1":
        raise SampleRejected(RejectReason.TDM_RESERVED, "TDM-Reservation: 1")


@functools.cache
def agent_token(user_agent: str) -> str:
    """Returns the product token that robots.txt knows us by. Source: RFC 9309, section 2.2.1."""
    return re.split(r"[/\s]", user_agent.strip(), maxsplit=1)[0]


def opt_outs(tags: list[str], agent: str) -> set[str]:
    """Returns the directives in X-Robots-Tag values that leave the image out, for us or for all.

    `googlebot: noindex` speaks to another agent; what follows a name, up to the next, is its. A
    name with a value (`max-snippet: 5`) and the parts of a date name nobody.
    """
    agent = agent.lower()
    found = set()
    for tag in tags:
        addressee = None
        for part in tag.lower().split(","):
            name, separator, rest = (text.strip() for text in part.partition(":"))
            if separator and _is_addressee(name, agent):
                addressee, part = name, rest
            if addressee in (None, "*", agent) and part.strip() in OPT_OUTS:
                found.add(part.strip())
    return found


def _is_addressee(name: str, agent: str) -> bool:
    if name.startswith(VALUED_DIRECTIVES):
        return False
    return name in ("*", agent) or ADDRESSEE.fullmatch(name) is not None


def groups_for(text: str, agent: str) -> str:
    """Returns a robots.txt without the groups that surely are for other agents only.

    What is left means the same for the agent: where a line is not plain, its group stays.
    """
    agent = agent.lower()
    kept: list[str] = []
    group: list[str] = []
    is_ours, is_ruled = False, False
    for line in text.splitlines():
        named = USER_AGENT_LINE.match(line)
        if named and is_ruled:
            kept += group if is_ours else []
            group, is_ours, is_ruled = [], False, False
        if named:
            is_ours = is_ours or named[1].strip().lower().replace("*", "") in agent
        elif USER_LINE.match(line):  # may begin a group, which the next agent is of as well
            is_ours, is_ruled = True, False
        is_ruled = is_ruled or RULE_LINE.match(line) is not None
        group.append(line)
    kept += group if is_ours else []
    return "\n".join(kept)


def parse_robots(text: str) -> Protego:
    """Returns the rules of a robots.txt."""
    return Protego.parse(text)


def rules_memory_bytes(robots: str, reservations: tuple[tuple[str, bool], ...]) -> int:
    """Returns what a host's rules take in memory, at most."""
    patterns = sum(len(pattern) for pattern, _ in reservations)
    return MEMORY_PER_HOST + MEMORY_PER_CHARACTER * len(robots) + 4 * patterns


def crawl_delay_seconds(robots: Protego | None, agent: str) -> float:
    """Returns the seconds between requests that robots.txt asks for, bounded."""
    delay = robots.crawl_delay(agent) if robots is not None else None
    return min(max(float(delay or 0.0), 0.0), MAX_CRAWL_DELAY_SECONDS)


def retry_after_seconds(value: str | None) -> float | None:
    """Returns the seconds that a Retry-After header asks to wait, None if it says nothing."""
    if value is None:
        return None
    if re.fullmatch("[0-9]+", value.strip()):
        return float(value.strip()[:9])
    try:
        moment = email.utils.parsedate_to_datetime(value)
        return max(0.0, moment.timestamp() - time.time())
    except (ValueError, OverflowError):  # no date, or one that no calendar has
        return None
