import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from pipeline.fetch.http.urls import parse_url
from schemas.addresses import AddressGuard, is_public
from schemas.errors import SampleRejected

CLOSED = AddressGuard((), (80, 443))


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "93.184.216.34", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"],
)
def test_public_addresses_may_be_reached(address: str) -> None:
    CLOSED.check_address(address)


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_in_ipv6_is_judged_as_itself(address: ipaddress.IPv4Address) -> None:
    number = int(address)
    forms = [
        ipaddress.IPv6Address((0xFFFF << 32) | number),
        ipaddress.IPv6Address((0x64FF9B << 96) | number),
        ipaddress.IPv6Address((0x2002 << 112) | (number << 80) | 1),
    ]
    for form in forms:
        if is_public(address):
            CLOSED.check_address(str(form))
        else:
            with pytest.raises(SampleRejected):
                CLOSED.check_address(str(form))


@given(st.ip_addresses(v=4))
def test_no_private_address_is_public(address: ipaddress.IPv4Address) -> None:
    private = address.is_private or address.is_loopback or address.is_link_local
    assert not (is_public(address) and (private or address.is_multicast))


def test_allowed_networks_open_themselves_and_nothing_else() -> None:
    guard = AddressGuard(("10.1.0.0/16", "fd00::/8"), (80,))
    for address in ("10.1.2.3", "fd00::1", "::ffff:10.1.2.3"):
        guard.check_address(address)
    for address in ("10.2.0.1", "127.0.0.1", "fe80::1"):
        with pytest.raises(SampleRejected):
            guard.check_address(address)


@given(st.text(max_size=60))
def test_any_text_is_a_url_or_rejected(text: str) -> None:
    try:
        url = parse_url(text)
        CLOSED.check_url(url)
    except SampleRejected:
        return
    assert isinstance(url, URL)
    assert url.user is None and url.scheme in ("http", "https")


@given(st.text(alphabet="[]@:/?#%x1.\\ ", max_size=12))
def test_any_punctuation_is_a_url_with_an_origin_or_rejected(text: str) -> None:
    try:
        url = parse_url(f"http://{text}")
        CLOSED.check_url(url)
    except SampleRejected:
        return
    assert str(url.origin()).startswith("http://")


@given(st.text(alphabet="0123456789.xabcdef", max_size=20))
def test_any_numeric_host_is_an_address_or_rejected(host: str) -> None:
    try:
        CLOSED.check_url(parse_url(f"http://{host}/"))
    except SampleRejected:
        return
