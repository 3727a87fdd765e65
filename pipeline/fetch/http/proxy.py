"""The proxy that all requests go through, and by whose name it is asked.

A user name and a password come from the environment, which worker processes inherit: they are in no
configuration, and so in no file of the dataset and on no screen.
"""

import os
import socket
from collections.abc import Sequence
from urllib.parse import unquote, urlsplit

from yarl import URL

from schemas.errors import DatasetError

CREDENTIALS = "ALIGNGPT_PROXY_CREDENTIALS"
"""Variable of the environment that holds USER:PASSWORD for the proxy."""

FLAG = "--fetch.proxy"

CONNECT_SECONDS = 10.0


def proxy_url(proxy: str) -> URL:
    """Returns the proxy's address with the credentials for it; never show it."""
    user, _, password = os.environ.get(CREDENTIALS, "").partition(":")
    return URL(proxy).with_user(user or None).with_password(password or None)


def hide_credentials(words: Sequence[str]) -> list[str]:
    """Returns a command line whose proxy has no credentials; the environment holds them then."""
    hidden = list(words)
    for at, word in enumerate(words):
        if word.startswith(f"{FLAG}="):
            hidden[at] = f"{FLAG}={_hidden(word.removeprefix(f'{FLAG}='))}"
        elif at and words[at - 1] == FLAG:
            hidden[at] = _hidden(word)
    return hidden


def _hidden(proxy: str) -> str:
    start, separator, rest = proxy.rpartition("://")
    credentials, mark, address = rest.rpartition("@")
    if mark:
        os.environ[CREDENTIALS] = unquote(credentials)
    return f"{start}{separator}{address}"


def require_proxy(proxy: str) -> None:
    """Raises `DatasetError` if nobody answers at the proxy's address: no image is to blame."""
    parts = urlsplit(proxy)
    try:
        with socket.create_connection((parts.hostname, parts.port or 80), CONNECT_SECONDS):
            return
    except OSError as error:
        raise DatasetError(
            f"the proxy {proxy} cannot be reached ({error}): check fetch.proxy, then run again"
        ) from error


def not_let_in(proxy: str) -> DatasetError:
    """Returns the error of a proxy that asks for other credentials."""
    return DatasetError(
        f"the proxy {proxy} does not let us in (407): set {CREDENTIALS}=USER:PASSWORD in the "
        "environment, then run again"
    )
