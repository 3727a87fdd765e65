import asyncio
import datetime
import ipaddress
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pipeline.config import FetchConfig
from pipeline.fetch.hosts.memory import HostMemory
from pipeline.fetch.http.download import Downloader
from schemas.errors import RejectReason, SampleRejected
from tests.web_server import ALLOWED_HOST, WebServer

IMAGE = b"\xff\xd8\xff" + bytes(200)
NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Certificate:
    file: Path
    context: ssl.SSLContext


def make_certificate(folder: Path, name: str, address: str, days: int) -> Certificate:
    """Returns a self-signed certificate for an address, valid until so many days from now."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - 10 * DAY)
        .not_valid_after(NOW + days * DAY)
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file, key_file = folder / f"{name}.pem", folder / f"{name}.key"
    file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file, key_file)
    return Certificate(file, context)


@pytest.fixture(params=[("good", ALLOWED_HOST, 5), ("late", ALLOWED_HOST, -5), ("other", "::1", 5)])
def tls_server(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[str, WebServer, Path]]:
    """Returns a server whose certificate is good, expired or another host's."""
    name, address, days = request.param
    certificate = make_certificate(tmp_path, name, address, days)
    server = WebServer(hosts=(ALLOWED_HOST,), tls=certificate.context).start()
    yield name, server, certificate.file
    server.stop()


def download(config: FetchConfig, url: str) -> bytes | RejectReason:
    async def ask() -> bytes | RejectReason:
        downloader = Downloader(config, HostMemory(config))
        try:
            return bytes(await downloader.download(url))
        except SampleRejected as rejected:
            return rejected.reason
        finally:
            await downloader.close()

    return asyncio.run(ask())


def settings(server: WebServer, ca_file: Path | None) -> FetchConfig:
    return FetchConfig(
        allow_networks=(f"{ALLOWED_HOST}/32",),
        allow_ports=(server.port,),
        ca_file=str(ca_file) if ca_file else None,
        timeout_seconds=60.0,
        retries=0,
    )


def test_only_a_certificate_that_is_trusted_valid_and_the_hosts_own_is_taken(
    tls_server: tuple[str, WebServer, Path],
) -> None:
    name, server, file = tls_server
    url = server.serve("/a", IMAGE)
    trusted = download(settings(server, file), url)
    assert trusted == (IMAGE if name == "good" else RejectReason.TLS_FAILED)
    assert download(settings(server, None), url) is RejectReason.TLS_FAILED


def test_a_server_that_speaks_no_tls_fails_in_tls(web_server: WebServer) -> None:
    url = web_server.serve("/a", IMAGE).replace("http://", "https://")
    assert download(settings(web_server, None), url) is RejectReason.TLS_FAILED
