"""Which of a run's processes this is, and by which of its host's addresses the others reach it."""

import ipaddress
import os
import secrets
import socket
from dataclasses import dataclass

import psutil

from schemas.errors import ConfigError

PLACE = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Which of a run's processes one is."""

    rank: int
    processes: int
    local_rank: int
    """Which of those on its host."""
    host: str

    @classmethod
    def here(cls) -> "Place":
        """Returns this process's place, as a launcher set it.

        Raises:
            ConfigError: if it set only a part of it.
        """
        missing = [name for name in PLACE if not os.environ.get(name)]
        if missing:
            raise ConfigError(
                f"{' and '.join(missing)} not set: of several processes, torchrun, deepspeed or "
                "--processes sets them; start the run by one of these"
            )
        return cls(
            rank=int(os.environ["RANK"]),
            processes=int(os.environ["WORLD_SIZE"]),
            local_rank=int(os.environ["LOCAL_RANK"]),
            host=socket.gethostname(),
        )

    @property
    def node(self) -> int:
        """Number of the first process on the same host."""
        return self.rank - self.local_rank

    def __str__(self) -> str:
        """Returns what messages call it."""
        return f"process {self.rank} ({self.host})"


def listen(master: str, port: int) -> tuple[socket.socket, tuple[str, int, str]]:
    """Returns where the first process waits for the others, and what they need to reach it.

    Args:
        master: address of the store; the first process need not be on its host.
    """
    own = _own_address(master, port)
    is_local = master == "localhost" or (_is_address(master) and _is_loopback(master))
    if is_local:
        server = socket.create_server((own, 0), backlog=4096)
    elif socket.has_dualstack_ipv6():
        server = socket.create_server(
            ("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096
        )
    else:
        server = socket.create_server(("", 0), backlog=4096)
    # A host may know its own name as a loopback address; others know it by the same name.
    address = own if is_local or not _is_loopback(own) else master
    return server, (address, server.getsockname()[1], secrets.token_hex(16))


def _own_address(address: str, port: int) -> str:
    """Returns the address of this host that reaches another one; nothing is sent."""
    family, kind, _, _, target = socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(target)
        return str(probe.getsockname()[0])


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


def name_interface(own: str) -> None:
    """Tells gloo which network reaches the other hosts, unless the user did.

    It takes the one of the host's own name, which many systems resolve to 127.0.1.1.

    Args:
        own: this host's address there; empty without other hosts.
    """
    for name, addresses in psutil.net_if_addrs().items():
        if own and own in {one.address.split("%")[0] for one in addresses}:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def address_of(connection: socket.socket) -> str:
    """Returns this host's address on the way that a connection takes."""
    address = ipaddress.ip_address(connection.getsockname()[0].split("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)
