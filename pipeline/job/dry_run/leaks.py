"""What must not leave this machine with a job: secrets, and paths that only it has."""

import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.job.dry_run.elsewhere import OWN_ROOT
from pipeline.job.dry_run.pickles import pickles_of

SECRET_WORDS = re.compile(
    r"(?:^|_)(?:API)?(?:KEY|KEYS|SECRET|TOKEN|PASSWORD|PASSWD|PASS|CREDENTIALS?)(?:_|$)"
    r"|PASSWORD$|APIKEY$|_PWD$",
    re.IGNORECASE,
)
"""In the name of a variable whose value is a secret, such as AWS_SECRET_ACCESS_KEY."""

LEAST_SECRET = 6
"""Characters from which on a value is told from chance."""

SECRET_FORMS = {
    "an access key of AWS": rb"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "a token of the Hugging Face Hub": rb"\bhf_[A-Za-z0-9]{30,}",
    "a token of GitHub": rb"\bgh[pousr]_[A-Za-z0-9]{36}",
    "a key of Google": rb"\bAIza[A-Za-z0-9_-]{35}",
    "a private key": rb"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a signed address": rb"[?&](?:X-Amz-Signature|X-Goog-Signature|sig|Signature)=[^&\s]{16,}",
    "an address with a password": rb"[a-z][a-z0-9+.-]*://[^/\s:@\"']*:[^/\s:@\"']+@",
}
"""Secrets that are known by how they look."""


def places_of(proto: Any, options: Mapping[str, Any]) -> dict[str, bytes]:
    """Returns what leaves this machine as plain bytes, by where in the job it stands."""
    places = {f"step {one.owner!r}": b"" for one in pickles_of(proto)}
    for one in pickles_of(proto):
        places[f"step {one.owner!r}"] += one.plain + b"\n"
    flags = {f"Beam's flag --{name}": str(value).encode() for name, value in options.items()}
    return {**places, **flags, "the graph": proto.SerializeToString()}


def secrets_here() -> dict[str, bytes]:
    """Returns the secrets of this process's environment, by the name of their variable."""
    return {
        f"the value of ${name}": os.fsencode(value)
        for name, value in os.environ.items()
        if SECRET_WORDS.search(name) and len(value) >= LEAST_SECRET
    }


def secrets_in(data: bytes) -> list[str]:
    """Returns which secrets stand in a text, for people; their own text is not repeated."""
    known = [what for what, text in secrets_here().items() if text in data]
    return [*known, *(what for what, form in SECRET_FORMS.items() if re.search(form, data))]


def paths_here() -> dict[str, bytes]:
    """Returns folders that other machines do not have, by what they are here."""
    folders = {
        "the home folder": str(Path.home()),
        "the working folder": str(Path.cwd()),
        "the folder of this program": OWN_ROOT,
        "the folder of this Python": sys.prefix,
    }
    # Folders of the system are everywhere.
    system = ("/", "/usr", "/usr/local", "/opt", "/tmp")
    return {what: os.fsencode(path) for what, path in folders.items() if path not in system}


def leaks_of(places: Mapping[str, bytes], named: Sequence[str] | None) -> list[str]:
    """Returns which secrets and paths stand where; a secret's own text is not repeated.

    Args:
        named: paths that the user gave, which workers are meant to share; None looks for no paths,
            where workers are on this machine.
    """
    paths = paths_here() if named is not None else {}
    allowed = sorted((os.fsencode(path) for path in named or () if path), key=len, reverse=True)
    found: dict[str, list[str]] = {}
    for place, data in places.items():
        for what in secrets_in(data):
            found.setdefault(what, []).append(place)
        for path in allowed:
            data = data.replace(path, b"")
        for what, path in paths.items():
            if _stands_in(path, data):
                found.setdefault(f"{what} ({os.fsdecode(path)})", []).append(place)
    return [f"{what} would be sent along, in {_listed(places)}" for what, places in found.items()]


def _listed(places: Sequence[str]) -> str:
    more = len(places) - 1
    return f"{places[0]} and {more} other place{'s' * (more > 1)}" if more else places[0]


def _stands_in(path: bytes, data: bytes) -> bool:
    """Returns whether a path, whole or as the beginning of one, is in a text."""
    return re.search(rb"(?<![\w.:/-])" + re.escape(path) + rb"(?![\w.-])", data) is not None
