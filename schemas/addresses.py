"""What may be reached: schemes, ports and addresses, judged where the connection is made."""

import ipaddress
import socket
from typing import Any

from yarl import URL

from schemas.errors import RejectReason, SampleRejected

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

NAT64 = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("64:ff9b:1::/48"))
"""Prefixes that carry an IPv4 address in their last 32 bits. Source: RFC 6052, RFC 8215."""

IPV4_COMPATIBLE = ipaddress.IPv6Network("::/96")
"""The deprecated form of an IPv4 address in IPv6. Source: RFC 4291, section 2.5.5.1."""

METADATA_ADDRESSES = frozenset({ipaddress.ip_address("168.63.129.16")})
"""Addresses in public space that a cloud answers inside its machines (Azure's WireServer)."""


class AddressGuard:
    """Says which URLs and which addresses may be asked."""

    def __init__(self, allow_networks: tuple[str, ...], allow_ports: tuple[int, ...]) -> None:
        self._networks = tuple(ipaddress.ip_network(network) for network in allow_networks)
        self._ports = frozenset(allow_ports)

    def check_url(self, url: URL) -> None:
        """Raises `SampleRejected` unless scheme and port may be asked and a host is named."""
        if url.scheme not in ("http", "https"):
            scheme = url.scheme[:30] or "no scheme"
            raise SampleRejected(RejectReason.FORBIDDEN_SCHEME, f"{scheme}: only http and https")
        if not url.raw_host:
            raise SampleRejected(RejectReason.INVALID_URL, "no host")
        if url.port not in self._ports:
            raise SampleRejected(RejectReason.FORBIDDEN_PORT, f"port {url.port}")

    def open_socket(self, address_info: tuple[Any, ...]) -> socket.socket:
        """Returns a socket for an address that may be reached; it is what is connected to.

        The connector calls this with every resolved address right before it connects, so that
        literals, names, redirects and names that change their address are all judged alike.

        Raises:
            SampleRejected: FORBIDDEN_ADDRESS.
        """
        family, kind, protocol, _, address = address_info
        self.check_address(address[0])
        return socket.socket(family=family, type=kind, proto=protocol)

    def check_address(self, text: str) -> None:
        """Raises `SampleRejected` unless the address is public or in an allowed network."""
        address = ipaddress.ip_address(text.split("%", 1)[0])
        inner = embedded_ipv4(address)
        if any(self._is_allowed(one) for one in (address, inner) if one is not None):
            return
        if is_public(address) and (inner is None or is_public(inner)):
            return
        raise SampleRejected(RejectReason.FORBIDDEN_ADDRESS, f"{text} is not a public address")

    def _is_allowed(self, address: IPAddress) -> bool:
        return any(
            address.version == network.version and address in network for network in self._networks
        )


def is_public(address: IPAddress) -> bool:
    """Returns whether an address is one host's of the public internet."""
    if address in METADATA_ADDRESSES:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None or address in IPV4_COMPATIBLE:
            return embedded_ipv4(address) is not None and address not in LOCAL_IPV6
        if any(address in network for network in NAT64):
            return address in NAT64[0]
        if address.is_site_local:
            return False
        if address.sixtofour is not None:  # public to one Python, private to another
            return is_public(address.sixtofour)
    is_special = address.is_multicast or address.is_reserved or address.is_unspecified
    return address.is_global and not is_special


LOCAL_IPV6 = (ipaddress.IPv6Address("::"), ipaddress.IPv6Address("::1"))


def embedded_ipv4(address: IPAddress) -> ipaddress.IPv4Address | None:
    """Returns the IPv4 address that an IPv6 address leads to, None if it leads to none.

    Covers IPv4-mapped and IPv4-compatible addresses, NAT64, 6to4 and Teredo.
    """
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    if address in IPV4_COMPATIBLE or any(address in network for network in NAT64):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return None
