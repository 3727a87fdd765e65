import os
import secrets
import socket

import psutil
import pytest

from schemas.errors import ConfigError
from training.engine.place import Place, listen, name_interface


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


def test_gloo_keeps_its_own_network_where_all_processes_are_on_one_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    places = [Place(rank=r, processes=2, local_rank=r, host="a") for r in range(2)]
    name_interface(places, "127.0.0.1", 1)
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eth7"
