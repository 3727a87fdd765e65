import os
import secrets
import socket

import psutil
import pytest

from schemas.errors import ConfigError
from training.engine.place import Place, address_of, listen, name_interface


def test_half_a_place_is_refused_by_the_names_that_it_lacks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "1")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(ConfigError, match="LOCAL_RANK not set"):
        Place.here()


def test_one_machine_is_listened_to_from_nowhere_else() -> None:
    server, (address, port, password) = listen("127.0.0.1", 1)
    with server:
        assert server.getsockname()[:2] == ("127.0.0.1", port)
        assert address == "127.0.0.1"
        assert len(password) == len(secrets.token_hex(16))


def test_an_address_that_others_know_is_the_one_they_are_told() -> None:
    found = psutil.net_if_addrs().values()
    own = [
        one.address
        for addresses in found
        for one in addresses
        if one.family == socket.AF_INET and not one.address.startswith("127.")
    ]
    if not own:
        pytest.skip("this machine has no network")
    server, (address, port, _) = listen(own[0], 1)
    with server, socket.create_connection((address, port)):
        assert address == own[0]


@pytest.mark.parametrize(
    ("own", "users", "expected"),
    [("127.0.0.1", None, "lo"), ("127.0.0.1", "eth7", "eth7"), ("", None, None)],
)
def test_gloo_takes_the_network_that_reaches_the_others_unless_it_is_told(
    monkeypatch: pytest.MonkeyPatch, own: str, users: str | None, expected: str | None
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", users or "to be put back")
    if users is None:
        monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    name_interface(own)
    assert os.environ.get("GLOO_SOCKET_IFNAME") == expected


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv6 beside IPv4")
def test_an_address_is_the_same_on_a_server_of_both_protocols() -> None:
    server = socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    with server, socket.create_connection(("127.0.0.1", server.getsockname()[1])) as client:
        accepted, _ = server.accept()
        with accepted:
            assert address_of(accepted) == address_of(client) == "127.0.0.1"
