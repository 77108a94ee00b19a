"""Where a client's gateways are, and the key that they want. Reads files, opens no connection."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import SplitResult, urlsplit

from meshnode.client.control import ControlAddress, control_address
from meshnode.errors import ConfigError
from meshnode.limits import MAX_CLIENT_GATEWAYS, MAX_KEY_FILE_BYTES
from meshnode.options import is_loopback
from meshnode.types import Address

if TYPE_CHECKING:
    from collections.abc import Mapping

GATEWAY_VARIABLE: Final = "MESHNODE_GATEWAY"
"""Environment variable with the URLs of gateways, separated by commas."""

URL_VARIABLE: Final = "MESHNODE_URL"
"""The same under another name."""

API_KEY_VARIABLE: Final = "MESHNODE_API_KEY"
"""Environment variable with an API key."""

API_KEY_FILE_VARIABLE: Final = "MESHNODE_API_KEY_FILE"
"""Environment variable with the name of a file that holds an API key."""

CA_FILE_VARIABLE: Final = "MESHNODE_CA_FILE"
"""Environment variable with the name of a file of certificates to trust."""

DEFAULT_GATEWAY: Final = "http://127.0.0.1:8470"
"""The gateway of a node on this machine, with its default address."""

_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One gateway, or the control channel of this machine's daemon.

    Attributes:
        url: Its URL without a final slash; for a control channel `control:` and the data folder.
        address: Where to connect; unused for a control channel.
        tls: Whether to speak TLS.
        prefix: What every path is prefixed with; empty, or beginning with `/`.
        control: The data folder whose control channel it is, or None.
    """

    url: str
    address: Address
    tls: bool = False
    prefix: str = ""
    control: Path | None = None

    def __str__(self) -> str:
        """Name it for a person."""
        return self.url if self.control is None else f"the daemon on {self.control}"

    @property
    def host_header(self) -> str:
        """The `Host` header: without the port where it is the scheme's own."""
        if self.control is not None:
            return "localhost"  # what the gateway's check of `Host` allows
        default = _PORTS["https" if self.tls else "http"]
        if self.address.port != default:
            return str(self.address)
        host = self.address.host
        return f"[{host}]" if ":" in host else host

    @property
    def shows_key(self) -> bool:
        """Whether a key that is sent there can be read on the way."""
        return self.control is None and not self.tls and not is_loopback(self.address.host)

    def control_address(self) -> ControlAddress:
        """Return where the daemon of this control channel listens now.

        Raises:
            ConfigError: if its control file cannot be read.
        """
        assert self.control is not None
        return control_address(self.control)


@dataclass(frozen=True, slots=True)
class Target:
    """All that a client needs to know to reach its mesh.

    Attributes:
        endpoints: At least one.
        api_key: Sent as `Authorization: Bearer`; empty for none. Never shown.
        ca_file: A file with the certificates to trust instead of the system's, or None.
    """

    endpoints: tuple[Endpoint, ...]
    api_key: str = field(default="", repr=False)
    ca_file: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether it is a control channel."""
        return self.endpoints[0].control is not None


def control_target(data_dir: Path) -> Target:
    """Return the control channel of a data folder's daemon; whether one runs shows at the first call."""
    return Target((Endpoint(f"control:{data_dir}", Address("localhost", 0), control=data_dir),))


def gateway_target(
    urls: str | Iterable[str] | None,
    api_key: str | None,
    environ: Mapping[str, str],
    *,
    key_file: str | None = None,
    ca_file: str | None = None,
) -> Target:
    """Return the gateways to use and the key for them.

    Args:
        urls: One URL or several; None for those of `MESHNODE_GATEWAY` or `MESHNODE_URL`, else the
            default.
        api_key: The key; None for that of `key_file`, `MESHNODE_API_KEY` or `MESHNODE_API_KEY_FILE`,
            in this order, else none.
        environ: Environment variables.
        key_file: A file that holds the key.
        ca_file: As in `Target`; None for that of `MESHNODE_CA_FILE`.

    Raises:
        ConfigError: if a URL, the key or a file cannot be used; no message repeats a secret.
    """
    if urls is not None and not isinstance(urls, Iterable):
        raise ConfigError(f"gateways must be a URL or a list of them, and are {urls!r}")
    if urls is None:
        given = named_gateways(environ) or [DEFAULT_GATEWAY]
    else:
        given = [urls] if isinstance(urls, str) else list(urls)
    if not given:
        raise ConfigError(
            "the list of gateways is empty; name at least one, or give none at all for the default"
        )
    endpoints = tuple(dict.fromkeys(parse_url(url) for url in given))
    if len(endpoints) > MAX_CLIENT_GATEWAYS:
        raise ConfigError(f"a client takes at most {MAX_CLIENT_GATEWAYS} gateways")
    return Target(endpoints, _key(api_key, key_file, environ), _ca_file(ca_file, environ))


def _ca_file(given: str | None, environ: Mapping[str, str]) -> str | None:
    name = environ.get(CA_FILE_VARIABLE) or None if given is None else given
    if name is None:
        return None
    if not isinstance(name, str | os.PathLike):
        raise ConfigError(f"ca_file must name a file of certificates (PEM), and is {name!r}")
    path = Path(name).expanduser()
    if not path.is_file():
        what = CA_FILE_VARIABLE if given is None else "the file of trusted certificates"
        raise ConfigError(f"{what} {name!r} does not exist; name a file of certificates (PEM)")
    return str(path)


def named_gateways(environ: Mapping[str, str]) -> list[str]:
    """Return the URLs that `MESHNODE_GATEWAY` or `MESHNODE_URL` names.

    Raises:
        ConfigError: if they name different ones.
    """
    first, second = (split_urls(environ.get(name, "")) for name in (GATEWAY_VARIABLE, URL_VARIABLE))
    if first and second and first != second:
        raise ConfigError(
            f"{GATEWAY_VARIABLE} and {URL_VARIABLE} name different gateways; take one of them back"
        )
    return first or second


def split_urls(text: str) -> list[str]:
    """Return the URLs of a list that is separated by commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def parse_url(text: str) -> Endpoint:
    """Read a gateway's URL.

    Raises:
        ConfigError: if it is no http or https URL of a host, or holds credentials.
    """
    if not isinstance(text, str):
        raise ConfigError(f"a gateway's URL must be text, and is {text!r}")
    if "@" in text:
        raise ConfigError(
            "a gateway's URL must not contain a user, a password or a key: they end up in logs and "
            f"process lists; give the API key in {API_KEY_VARIABLE} or {API_KEY_FILE_VARIABLE}"
        )
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise _not_a_url(text) from None
    if parts.scheme not in _PORTS or not parts.hostname or port == 0:
        raise _not_a_url(text)
    if parts.query or parts.fragment or not text.isprintable() or not text.isascii() or " " in text:
        raise _not_a_url(text)
    return _endpoint(parts, parts.hostname, port)


def _endpoint(parts: SplitResult, host: str, port: int | None) -> Endpoint:
    tls = parts.scheme == "https"
    prefix = parts.path.rstrip("/")
    address = Address(host, port or _PORTS[parts.scheme])
    return Endpoint(f"{parts.scheme}://{parts.netloc.lower()}{prefix}", address, tls, prefix)


def _not_a_url(text: str) -> ConfigError:
    return ConfigError(
        f"{text[:200]!r} is not the URL of a gateway; write one such as http://192.0.2.7:8470 or "
        "https://mesh.example.com"
    )


def _key(api_key: str | None, key_file: str | None, environ: Mapping[str, str]) -> str:
    if api_key is not None:
        return _checked(api_key, "the API key")
    if key_file:
        return _key_of_file(key_file)
    if text := environ.get(API_KEY_VARIABLE, "").strip():
        return _checked(text, API_KEY_VARIABLE)
    if name := environ.get(API_KEY_FILE_VARIABLE):
        return _key_of_file(name)
    return ""


def _key_of_file(name: str) -> str:
    place = Path(name).expanduser()
    try:
        with place.open("rb") as stream:
            content = stream.read(MAX_KEY_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"the API key's file {name!r} cannot be read: {error.strerror}") from None
    text = content.decode(errors="replace").strip()
    if len(content) > MAX_KEY_FILE_BYTES or not text:
        raise ConfigError(
            f"{name!r} holds no API key: it must be one line, as `meshnode keys create` printed it"
        )
    return _checked(text, repr(name))


def _checked(key: str, what: str) -> str:
    if not isinstance(key, str):
        raise ConfigError(f"{what} must be text, and is of type {type(key).__name__}")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(
            f"{what} is not an API key: a key has only letters, digits and '_', in one line"
        )
    return key
