"""The gateway's certificate: checked, served, renewed while it runs."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import os
import ssl
from typing import TYPE_CHECKING, Any

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import pkcs12
from cryptography.x509.oid import NameOID

from meshnode.errors import ConfigError
from meshnode.gateway import tls as tls_module
from meshnode.gateway.access import GatewayAccess
from meshnode.gateway.protocols.origin import OriginPolicy
from meshnode.gateway.server import HttpServer
from meshnode.gateway.tls import GatewayTls
from meshnode.gateway.tls_files import load_pair
from meshnode.types import Address
from tests.unit.gateway.test_server import Client

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from meshnode.gateway.dispatch import Dispatcher
    from meshnode.gateway.metrics import GatewayMetrics

TODAY = dt.datetime.now(dt.UTC)
PEM = serialization.Encoding.PEM


class Files:
    """A certificate's files, as an owner keeps them."""

    def __init__(self, folder: Path) -> None:
        self.certificate, self.key = folder / "cert.pem", folder / "key.pem"
        self.written = 0

    def write(
        self,
        name: str = "localhost",
        begins: dt.datetime = TODAY - dt.timedelta(days=1),
        ends: dt.datetime = TODAY + dt.timedelta(days=30),
        password: bytes | None = None,
        *,
        only: str = "",
    ) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begins)
            .not_valid_after(ends)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .sign(key, hashes.SHA256())
        )
        if password is None:
            hidden: Any = serialization.NoEncryption()
        else:
            hidden = serialization.BestAvailableEncryption(password)
        texts = {
            self.certificate: certificate.public_bytes(PEM),
            self.key: key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, hidden),
        }
        self.written += 1
        for path, text in texts.items():
            if not only or only in path.name:
                path.write_bytes(text)
                os.utime(path, (self.written, self.written))  # however coarse the clock of the disk

    def load(self) -> GatewayTls:
        return GatewayTls(str(self.certificate), str(self.key))


@pytest.fixture
def files(tmp_path: Path) -> Files:
    made = Files(tmp_path)
    made.write()
    return made


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def run_it(work: Any) -> Any:
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(work)

    return run_it


async def served(
    dispatcher: Dispatcher, metrics: GatewayMetrics, tls: GatewayTls
) -> tuple[HttpServer, Address]:
    access = GatewayAccess(OriginPolicy("127.0.0.1"), lambda _: None)
    server = HttpServer(dispatcher, metrics, access, grace_s=0.1)
    return server, await server.listen_tcp(Address("127.0.0.1", 0), tls.context)


async def certificate_at(address: Address, server_name: str | None = "localhost") -> bytes:
    """Return the certificate that a new connection sees, after a request over it."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    reader, writer = await asyncio.open_connection(
        *address, ssl=context, server_hostname=server_name or ""
    )
    client = Client(reader, writer)
    assert (await client.ask("GET", "/healthz")).status == 200
    found = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    await client.close()
    return bytes(found)


def der(files: Files) -> bytes:
    leaf = x509.load_pem_x509_certificate(files.certificate.read_bytes())
    return leaf.public_bytes(serialization.Encoding.DER)


def test_a_renewed_certificate_counts_for_new_connections_and_a_broken_one_does_not(
    dispatcher: Dispatcher,
    metrics: GatewayMetrics,
    files: Files,
    run: Callable[[Any], Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A renewal writes two files, one after the other: in between they do not belong together."""
    caplog.set_level("INFO")

    async def story() -> None:
        tls = files.load()
        server, address = await served(dispatcher, metrics, tls)
        assert await certificate_at(address) == (first := der(files))
        assert not tls.reload()
        files.write(only="cert")
        assert not tls.reload()
        assert not tls.reload()  # told once
        assert await certificate_at(address) == first
        assert await certificate_at(address, server_name=None) == first
        files.write()
        assert tls.reload()
        assert await certificate_at(address) == der(files) != first
        assert await certificate_at(address, server_name=None) == der(files)
        files.key.unlink()
        assert not tls.reload()
        await certificate_at(address)
        await server.stop()

    run(story())
    told = [record.message for record in caplog.records if "renewed" in record.message]
    assert len(told) == 3
    assert "is not the key of" in told[0]
    assert told[1] == "the certificate was renewed"
    assert "does not exist" in told[2]


def test_the_files_are_followed(files: Files, run: Callable[[Any], Any]) -> None:
    async def story() -> None:
        tls = files.load()
        before = tls._current
        following = asyncio.ensure_future(tls.follow(0.001))
        files.write()
        async with asyncio.timeout(10):
            while tls._current is before:  # noqa: ASYNC110 - the file system has no event
                await asyncio.sleep(0.001)
        following.cancel()

    run(story())


def test_a_certificate_that_nears_its_end_while_it_is_served_is_told_daily(
    files: Files, caplog: pytest.LogCaptureFixture, run: Callable[[Any], Any]
) -> None:
    wall_s = [TODAY.timestamp()]
    looked = [0]

    def clock() -> float:
        looked[0] += 1
        return wall_s[0]

    async def story() -> None:
        tls = GatewayTls(str(files.certificate), str(files.key), wall_s=clock)
        following = asyncio.ensure_future(tls.follow(0.001))
        for day in (0, 15, 15.9, 16.1, 16.2, 17.2, 30.1):
            wall_s[0] = TODAY.timestamp() + day * 86_400
            seen = looked[0]
            async with asyncio.timeout(10):
                while looked[0] < seen + 3:  # noqa: ASYNC110 - it is a thread that looks
                    await asyncio.sleep(0.001)
        files.write(ends=TODAY + dt.timedelta(days=90))
        async with asyncio.timeout(10):
            while "was renewed" not in caplog.text:  # noqa: ASYNC110 - likewise
                await asyncio.sleep(0.001)
        following.cancel()

    caplog.set_level("INFO")
    run(story())
    told = ["expires at" in each or "expired at" in each for each in caplog.messages]
    assert told == [True, True, True, False]  # on days 16.1, 17.2 and 30.1, and then the renewal


def test_a_certificate_whose_dates_cannot_be_read_is_served_and_followed(
    files: Files, caplog: pytest.LogCaptureFixture, run: Callable[[Any], Any]
) -> None:
    """OpenSSL has a form of its own, with trust settings behind the certificate."""
    trusted = files.certificate.read_bytes().replace(b" CERTIFICATE-", b" TRUSTED CERTIFICATE-")
    files.certificate.write_bytes(trusted)

    async def story() -> None:
        tls = files.load()
        before = tls._current
        following = asyncio.ensure_future(tls.follow(0.001))
        await asyncio.sleep(0.01)
        files.write()
        async with asyncio.timeout(10):
            while tls._current is before:  # noqa: ASYNC110 - the file system has no event
                await asyncio.sleep(0.001)
        following.cancel()

    run(story())
    # A look at a file that is half written is an error of its own, told and forgotten.
    warnings = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert ["nobody will be warned" in each.getMessage() for each in warnings] == [True]


def test_nothing_ends_the_following_and_each_kind_of_fault_is_told_once(
    files: Files,
    caplog: pytest.LogCaptureFixture,
    run: Callable[[Any], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    faults = [OSError("gone"), OSError("gone"), MemoryError(), RuntimeError("no thread")]

    def load(*paths: Path) -> Any:
        if faults:
            raise faults.pop()
        return load_pair(*paths)

    async def story() -> None:
        tls = files.load()
        before = tls._current
        monkeypatch.setattr(tls_module, "load_pair", load)
        files.write()
        following = asyncio.ensure_future(tls.follow(0.001))
        async with asyncio.timeout(10):
            while tls._current is before:  # noqa: ASYNC110 - the file system has no event
                await asyncio.sleep(0.001)
        assert not following.done()
        following.cancel()

    run(story())
    assert len([each for each in caplog.messages if "cannot be followed" in each]) == 3
    assert not faults


def test_old_protocols_and_plain_http_are_refused(
    dispatcher: Dispatcher, metrics: GatewayMetrics, files: Files, run: Callable[[Any], Any]
) -> None:
    async def story() -> None:
        server, address = await served(dispatcher, metrics, files.load())
        assert server._runner.sites
        assert next(iter(server._runner.sites)).name == "https://127.0.0.1:0"
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        try:
            answer = await reader.read()
        except ConnectionError:
            answer = b""
        assert b"HTTP/1.1" not in answer
        writer.close()
        await server.stop()

    run(story())
    assert files.load().context.minimum_version == ssl.TLSVersion.TLSv1_2


def spoil(files: Files, how: str) -> None:
    match how:
        case "no certificate":
            files.certificate.unlink()
        case "no key":
            files.key.unlink()
        case "a folder":
            files.certificate.unlink()
            files.certificate.mkdir()
        case "another key":
            files.write(only="key")
        case "a password":
            files.write(password=b"secret")
        case "not PEM":
            files.certificate.write_bytes(b"certificate\n" * 100)
        case "nonsense":
            files.key.write_bytes(b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
        case "swapped":
            files.certificate, files.key = files.key, files.certificate
        case "huge":
            files.key.write_bytes(b"-----BEGIN " * 200_000)
        case _:
            mistake(files, how)


def mistake(files: Files, how: str) -> None:
    match how:
        case "DER":
            files.certificate.write_bytes(der(files))
        case "a DER key":
            key = serialization.load_pem_private_key(files.key.read_bytes(), None)
            form = serialization.PrivateFormat.PKCS8
            hidden = serialization.NoEncryption()
            files.key.write_bytes(key.private_bytes(serialization.Encoding.DER, form, hidden))
        case "PKCS 12":
            key = serialization.load_pem_private_key(files.key.read_bytes(), None)
            assert isinstance(key, ec.EllipticCurvePrivateKey)
            leaf = x509.load_pem_x509_certificate(files.certificate.read_bytes())
            data = pkcs12.serialize_key_and_certificates(
                b"n", key, leaf, None, serialization.BestAvailableEncryption(b"secret")
            )
            files.certificate.write_bytes(data)
        case "a cut certificate":
            files.certificate.write_bytes(files.certificate.read_bytes()[:200])
        case "a certificate twice":
            files.key = files.certificate
        case "a key twice":
            files.certificate = files.key
        case "a request":
            files.certificate.write_bytes(b"-----BEGIN CERTIFICATE REQUEST-----\n")
        case "nothing":
            files.key.write_bytes(b"\n")
        case _:
            raise AssertionError(how)


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("no certificate", r"--tls-cert .*cert.pem does not exist"),
        ("no key", r"--tls-key .*key.pem does not exist"),
        ("a folder", r"--tls-cert .*cannot be read by this user: Is a directory"),
        ("another key", r"is not the key of --tls-cert"),
        ("a password", r"has a password.*openssl pkey -in key.pem"),
        ("not PEM", r"is not a PEM file"),
        ("DER", r"cert.pem is DER, not PEM; .*openssl x509 -inform DER -in cert.pem"),
        ("a DER key", r"--tls-key .*is DER, not PEM; .*openssl pkey -inform DER -in key.pem"),
        ("PKCS 12", r"PKCS #12 .*not PEM; convert it: openssl pkcs12 -nodes -in cert.pem"),
        ("nonsense", r"cannot be used \(the private key in key.pem is damaged or cut off\)"),
        (
            "a cut certificate",
            r"cannot be used \(the certificate in cert.pem is damaged or cut off",
        ),
        ("a certificate twice", r"no private key in --tls-key .*cert.pem \(it has CERTIFICATE\)"),
        ("a key twice", r"no certificate in --tls-cert .*key.pem \(it has PRIVATE KEY\)"),
        ("a request", r"no certificate in .* \(it has CERTIFICATE REQUEST\)"),
        ("nothing", r"--tls-key .*key.pem is empty"),
        ("swapped", r"these two look swapped; name them the other way round"),
        ("huge", r"has more than 1048576 bytes"),
    ],
)
def test_files_that_cannot_be_used_are_explained(files: Files, how: str, sentence: str) -> None:
    spoil(files, how)
    with pytest.raises(ConfigError, match=sentence):
        files.load()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads everything")
def test_a_file_of_another_user_is_explained(files: Files) -> None:
    files.key.chmod(0)
    with pytest.raises(ConfigError, match="cannot be read by this user: Permission denied"):
        files.load()


@pytest.mark.parametrize(
    ("begins", "ends", "warning"),
    [
        (-30, -1, "expired at"),
        (1, 30, "is valid from"),
        (-1, 30, ""),
        (-1, 15, ""),
        (-76, 13, "nothing has renewed it"),
    ],
)
def test_a_certificate_out_of_its_time_is_a_warning(
    files: Files, caplog: pytest.LogCaptureFixture, begins: int, ends: int, warning: str
) -> None:
    files.write("h", TODAY + dt.timedelta(days=begins), TODAY + dt.timedelta(days=ends))
    assert repr(files.load()) == f"<GatewayTls {files.certificate}>"
    assert (warning in caplog.text) if warning else not caplog.records


def test_the_key_is_in_no_message(files: Files) -> None:
    secret = files.key.read_text().splitlines()[1]
    files.write(only="cert")
    with pytest.raises(ConfigError) as caught:
        files.load()
    assert secret not in str(caught.value)


async def test_a_gateway_on_all_of_ipv6_takes_ipv4_too(
    dispatcher: Dispatcher, metrics: GatewayMetrics
) -> None:
    """Its callers on loopback are local, under whichever address they come."""
    access = GatewayAccess(OriginPolicy("::"), lambda _: None)
    server = HttpServer(dispatcher, metrics, access, grace_s=0.1)
    try:
        address = await server.listen_tcp(Address("::", 0))
    except ConfigError:
        pytest.skip("no IPv6 here")
    for host, named in (("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")):
        client = Client(*await asyncio.open_connection(host, address.port))
        reply = await client.ask("GET", "/healthz", Host=f"{named}:{address.port}")
        assert reply.status == 200
        assert (await client.ask("GET", "/healthz", Host="192.168.1.5")).status == 401
        await client.close()
    await server.stop()
