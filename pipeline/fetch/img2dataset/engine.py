"""The engine of the peer: img2dataset 1.47 downloads and resizes, inside our shard.

What it does is its own: our guards of addresses, time and bytes do not hold while it works, it asks
no robots.txt, and no redirect is held against deny-lists. Before it, URLs whose scheme, port or
literal address may not be asked are rejected here; after it, what it stored is decoded under our
guards and kept as it is.
"""

import ipaddress
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import FetchConfig
from pipeline.dataset.input_tars import read_members
from pipeline.fetch.hosts.robots import OPT_OUTS, agent_token
from pipeline.fetch.http.proxy import proxy_url
from pipeline.fetch.http.responses import PASSING_STATUS
from pipeline.fetch.http.urls import parse_url
from schemas.addresses import AddressGuard
from schemas.errors import DatasetError, RejectReason, SampleRejected

PNG_COMPRESSION = 6
PROXY_VARIABLES = ("http_proxy", "https_proxy")
HASHES = ("sha256", "md5", "sha512")

R = RejectReason

REASONS: tuple[tuple[str, RejectReason], ...] = (
    ("disallowed by X-Robots-Tag", R.OPTED_OUT_BY_HEADER),
    ("is not allowed", R.FORBIDDEN_SCHEME),
    ("infinite loop", R.BAD_REDIRECT),
    ("timed out", R.TIMED_OUT),
    ("getaddrinfo|Name or service not known|name resolution|No address associated", R.DNS_FAILED),
    ("SSL|CERTIFICATE|TLS", R.TLS_FAILED),
    ("IncompleteRead|Remote end closed|Connection reset", R.INCOMPLETE_RESPONSE),
    ("Connection refused|unreachable|Errno", R.CONNECT_FAILED),
    (
        "unknown url type|no host given|nonnumeric port|control characters|codec can't",
        R.INVALID_URL,
    ),
    ("image too small", R.TOO_SMALL),
    ("image area too large", R.TOO_MANY_PIXELS),
    ("aspect ratio too large", R.TOO_ELONGATED),
)
"""What its messages mean, the first that matches."""


@dataclass(frozen=True, slots=True)
class PeerImage:
    """An image that img2dataset downloaded and stored."""

    place: str
    """Where `TarFiles` finds it."""
    original_width: int
    original_height: int
    sha256: str | None
    """Of the downloaded bytes; None if it was asked for another hash."""


PeerOutcome = PeerImage | SampleRejected


def download_with_img2dataset(
    asked: Sequence[tuple[str, str | None]], config: FetchConfig, folder: Path
) -> list[PeerOutcome]:
    """Returns what became of each URL, in their order; the images lie in tars below the folder.

    Args:
        asked: URL and expected hash (algorithm:hex) of each pair.

    Raises:
        DatasetError: if its process died. What hostile files can break with this engine is all of
            its shard.
    """
    guard = AddressGuard(config.allow_networks, config.allow_ports)
    outcomes: list[PeerOutcome | None] = [_refusal(url, guard) for url, _ in asked]
    for algorithm in HASHES:  # it computes one kind of hash in a run
        rows = [
            row
            for row, (_, expected) in enumerate(asked)
            if outcomes[row] is None and _algorithm(expected) == algorithm
        ]
        if not rows:
            continue
        part = folder / algorithm
        part.mkdir()
        _run([asked[row][0] for row in rows], algorithm, config, part)
        found = _outcomes(part, algorithm, [asked[row][1] for row in rows], config.image_format)
        for row, outcome in zip(rows, found, strict=True):
            outcomes[row] = outcome
    return [outcome or _unknown_hash() for outcome in outcomes]


def _unknown_hash() -> SampleRejected:
    return SampleRejected(R.HASH_MISMATCH, "unknown algorithm: use md5:, sha256: or sha512:")


def _refusal(text: str, guard: AddressGuard) -> SampleRejected | None:
    """Returns why a URL is not handed on, None if it is."""
    try:
        url = parse_url(text)
        guard.check_url(url)
        if "%" in _authority(text):  # urllib unquotes it and so asks another host than was judged
            raise SampleRejected(R.INVALID_URL, "its host has a % in it")
        try:
            ipaddress.ip_address(str(url.raw_host))
        except ValueError:
            return None
        guard.check_address(str(url.raw_host))
    except SampleRejected as rejected:
        return rejected.with_traceback(None)
    return None


def _authority(url: str) -> str:
    return re.split("[/?#]", url.partition("://")[2], maxsplit=1)[0]


def _algorithm(expected_hash: str | None) -> str:
    return expected_hash.partition(":")[0] if expected_hash else HASHES[0]


def _run(urls: list[str], algorithm: str, config: FetchConfig, folder: Path) -> None:
    table = pa.table({"url": pa.array(urls, pa.string())})
    with (
        pa.OSFile(str(folder / "urls.arrow"), "wb") as file,
        pa.ipc.new_file(file, table.schema) as writer,
    ):
        writer.write_table(table)
    (folder / "job.json").write_text(json.dumps(_job(len(urls), algorithm, config)))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "pipeline.fetch.img2dataset.process", str(folder)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=_environment(config.proxy),
        )
        try:
            status = process.wait()
        finally:
            process.kill()
            process.wait()
            if process.stdin is not None:
                process.stdin.close()
    if status != 0:
        said = (folder / "log").read_text(errors="replace")[-500:]
        raise DatasetError(
            f"img2dataset's process ended with status {status}: {said}\nRun again, or use "
            "fetch.engine aligngpt, whose decoders cost one image when they crash"
        )


def _environment(proxy: str | None) -> dict[str, str]:
    """Returns the variables of its process, which takes its proxy from there."""
    of_proxy = {} if proxy is None else dict.fromkeys(PROXY_VARIABLES, str(proxy_url(proxy)))
    return {**os.environ, **of_proxy, "NO_ALBUMENTATIONS_UPDATE": "1", "OMP_NUM_THREADS": "1"}


def _job(count: int, algorithm: str, config: FetchConfig) -> dict[str, Any]:
    """Returns our settings in its words."""
    is_png = config.image_format == "png"
    return {
        "resizer": {
            "image_size": config.image_size,
            "resize_mode": config.resize_mode,
            "resize_only_if_bigger": not config.can_upscale,
            "encode_quality": PNG_COMPRESSION if is_png else config.image_quality,
            "encode_format": config.image_format,
            "min_image_size": config.min_side,
            "max_image_area": config.max_pixels,
            "max_aspect_ratio": config.max_aspect_ratio,
        },
        "downloader": {
            "thread_count": min(config.connections, count),
            "timeout": config.timeout_seconds,
            "number_sample_per_shard": max(count, 10),
            "compute_hash": algorithm,
            "encode_format": config.image_format,
            "retries": config.retries,
            "user_agent_token": agent_token(config.user_agent),
            "disallowed_header_directives": sorted(OPT_OUTS)
            if config.respects_robots_tag
            else None,
        },
    }


def _outcomes(
    folder: Path, algorithm: str, expected: Sequence[str | None], image_format: str
) -> list[PeerOutcome]:
    tar = folder / "00000.tar"
    with tar.open("rb") as file:
        members = {member.name: member for member in read_members(file, tar.stat().st_size)}
    lost = SampleRejected(R.BAD_RESPONSE, "img2dataset lost it")
    outcomes: list[PeerOutcome] = [lost] * len(expected)
    for row in pq.read_table(folder / "00000.parquet").to_pylist():
        place, member = int(row["key"]), members.get(f"{row['key']}.{image_format}")
        wanted = expected[place]
        if row["status"] != "success" or member is None:
            outcomes[place] = rejection_of(str(row["status"]), str(row["error_message"]))
        elif wanted and wanted.partition(":")[2].strip().lower() != row[algorithm]:
            detail = f"{algorithm} is {row[algorithm]}"
            outcomes[place] = SampleRejected(R.HASH_MISMATCH, detail)
        else:
            outcomes[place] = PeerImage(
                place=member.place_in(str(tar)),
                original_width=row["original_width"],
                original_height=row["original_height"],
                sha256=row[algorithm] if algorithm == "sha256" else None,
            )
    return outcomes


def rejection_of(status: str, message: str) -> SampleRejected:
    """Returns what img2dataset's words about a failure mean."""
    detail = f"img2dataset: {message}"[:300]
    for words, reason in REASONS:
        if re.search(words, message):
            return SampleRejected(reason, detail)
    code = re.match(r"HTTP Error (\d{3})", message)
    if code is None:
        return SampleRejected(
            R.DECODE_FAILED if status == "failed_to_resize" else R.BAD_RESPONSE, detail
        )
    number = int(code[1])
    if number == 429:
        return SampleRejected(R.RATE_LIMITED, detail, number)
    is_passing = number in PASSING_STATUS or number >= 500
    return SampleRejected(R.SERVER_ERROR if is_passing else R.HTTP_STATUS, detail, number)
