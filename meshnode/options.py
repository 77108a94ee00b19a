"""What `meshnode join` was asked for: plain data and the rules that its text forms follow.

The command line reads strings; the daemon wants values. Everything here is pure, so that the
simulator, tests and other front ends make the same `JoinOptions` without a command line.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from meshnode.config import DEFAULT_HTTP_PORT, DEFAULT_MESH_PORT, MAX_LABELS, MAX_NAME_LENGTH
from meshnode.errors import ConfigError, InviteError
from meshnode.types import Address

if TYPE_CHECKING:
    from collections.abc import Iterable

_NAME = re.compile(rf"[A-Za-z0-9._-]{{1,{MAX_NAME_LENGTH}}}")
_NOT_IN_NAME = re.compile(r"[^A-Za-z0-9._-]+")
_HOST = re.compile(r"[A-Za-z0-9._:%-]{1,253}")  # 253: the longest name that DNS can carry
_INVITE = re.compile(r"mesh1[A-Za-z0-9_-]+")
_MAX_INVITE_LENGTH = 16_384  # chains of a few delegations and some seed addresses take about 1,000
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)(s|m|h|d)")
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_MAX_DURATION_S = 3650 * 86_400  # ten years: longer is a typing error, and dates stay valid

DEFAULT_LISTEN = Address("0.0.0.0", DEFAULT_MESH_PORT)  # noqa: S104 - other devices must reach it
"""Where the mesh listens unless told otherwise."""

DEFAULT_HTTP = Address("127.0.0.1", DEFAULT_HTTP_PORT)
"""Where the HTTP gateway listens unless told otherwise."""


DEFAULT_REGION = "default"
"""Where a node is unless told otherwise."""


class Chosen(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What a node's owner chose, as text, kept for its next start; None where nothing was chosen.

    What was not chosen is not kept, so that it follows the machine's name and later defaults.

    Attributes:
        name: The node's name.
        region: Where it is.
        zone: A place within the region; empty for none.
        labels: Each `KEY=VALUE`.
        listen: Address of the mesh; port 0 stays 0: any free one, at each start.
        http: Address of the gateway; empty for no gateway.
        models: Absolute path of a model repository; empty for none.
    """

    name: str | None = None
    region: str | None = None
    zone: str | None = None
    labels: tuple[str, ...] | None = None
    listen: str | None = None
    http: str | None = None
    models: str | None = None

    def changed_by(self, given: Chosen) -> Chosen:
        """Return this with everything replaced that was chosen now; labels as a whole."""
        chosen = {name: getattr(given, name) for name in self.__struct_fields__}
        changes = {name: value for name, value in chosen.items() if value is not None}
        return msgspec.structs.replace(self, **changes)

    def to_json(self) -> bytes:
        """Return it as a text that people can read."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"

    @classmethod
    def from_json(cls, data: bytes) -> Chosen:
        """Read what `to_json` wrote; fields of later versions are ignored.

        Raises:
            ConfigError: if it is something else, or a value breaks its rule.
        """
        try:
            chosen = msgspec.json.decode(data, type=cls)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ConfigError(str(error)) from None
        join_options(chosen, host_name="", data_dir="")
        return chosen


@dataclass(frozen=True, slots=True)
class JoinOptions:
    """What one daemon was asked to be.

    Attributes:
        invite: The invite as given, or None to rejoin, look around or found.
        name: The node's name, 1 to 63 of letters, digits, `-`, `_`, `.`.
        region: Where the node says it is; the same rule as a name.
        zone: A place within the region, the same rule, or empty.
        labels: Pairs of key and value, in the order given, no key twice.
        listen: Address of the mesh, TCP and UDP; port 0 takes any free one.
        http: Address of the HTTP gateway, or None for no gateway; port 0 takes any free one.
        data_dir: Absolute path of the folder with this node's identity and state.
        models: Absolute path of a model repository whose every model this node serves, or None.
        new: Found a mesh without looking for others.
        mdns: Announce this node and look for others on the local network.
        mdns_interfaces: IP addresses of this machine whose networks that is limited to; empty for
            all that are suitable.
        chosen: What of this the owner chose, now or before, to be kept for the next start.
    """

    invite: str | None
    name: str
    region: str
    zone: str
    labels: tuple[tuple[str, str], ...]
    listen: Address
    http: Address | None
    data_dir: str
    models: str | None
    new: bool
    mdns: bool
    mdns_interfaces: tuple[str, ...] = ()
    chosen: Chosen = field(default_factory=Chosen)


def join_options(
    chosen: Chosen,
    *,
    host_name: str,
    data_dir: str,
    invite: str | None = None,
    new: bool = False,
    mdns: bool = True,
    mdns_interfaces: tuple[str, ...] = (),
) -> JoinOptions:
    """Complete what was chosen with defaults.

    Args:
        chosen: What is kept from earlier starts, and what was given now.
        host_name: The machine's, which names a node without a name.
        data_dir: As in `JoinOptions`, like the following.
        invite: The invite.
        new: Found a mesh.
        mdns: Use the local network.
        mdns_interfaces: Where.

    Raises:
        ConfigError: if something chosen breaks its rule.
    """
    return JoinOptions(
        invite=invite,
        name=name_from_host(host_name)
        if chosen.name is None
        else check_name("--name", chosen.name),
        region=DEFAULT_REGION if chosen.region is None else check_name("--region", chosen.region),
        zone=check_name("--zone", chosen.zone) if chosen.zone else "",
        labels=parse_labels(chosen.labels or ()),
        listen=DEFAULT_LISTEN
        if chosen.listen is None
        else parse_address("--listen", chosen.listen, DEFAULT_MESH_PORT),
        http=_http(chosen.http),
        data_dir=data_dir,
        models=chosen.models or None,
        new=new,
        mdns=mdns,
        mdns_interfaces=mdns_interfaces,
        chosen=chosen,
    )


def _http(text: str | None) -> Address | None:
    if text is None:
        return DEFAULT_HTTP
    return check_loopback(parse_address("--http", text, DEFAULT_HTTP_PORT)) if text else None


def check_name(what: str, text: str) -> str:
    """Return a node's, region's or zone's name if it follows the rule.

    Args:
        what: What it names, for the message, such as `--region`.
        text: The name.

    Raises:
        ConfigError: if it does not; the message says the rule.
    """
    if not _NAME.fullmatch(text):
        raise ConfigError(
            f"{what} {text!r} is not a name: use 1 to {MAX_NAME_LENGTH} letters, digits, "
            "'-', '_' or '.'"
        )
    return text


def name_from_host(host_name: str) -> str:
    """Make a node's name from the machine's: its first label, other characters as `-`."""
    first_label = host_name.split(".", maxsplit=1)[0]
    return _NOT_IN_NAME.sub("-", first_label)[:MAX_NAME_LENGTH].strip("-") or "node"


def parse_labels(texts: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Read labels of the form `key=value`; a value may be empty.

    Raises:
        ConfigError: if one is not of that form, a key comes twice, or there are too many.
    """
    labels: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not _NAME.fullmatch(key) or (value and not _NAME.fullmatch(value)):
            raise ConfigError(
                f"--label {text!r} is not KEY=VALUE of letters, digits, '-', '_' or '.', "
                f"at most {MAX_NAME_LENGTH} each; for example: --label gpu=a100"
            )
        if key in labels:
            raise ConfigError(f"--label {key!r} is given twice; a node has one value per label")
        labels[key] = value
    if len(labels) > MAX_LABELS:
        raise ConfigError(f"{len(labels)} labels are given; a node has at most {MAX_LABELS}")
    return tuple(labels.items())


def parse_address(option: str, text: str, default_port: int) -> Address:
    """Read the `HOST:PORT` of an option; the port may be left out.

    Raises:
        ConfigError: if it is not an address; the message names the option.
    """
    try:
        address = Address.parse(text, default_port)
    except ValueError as error:
        raise ConfigError(f"{option}: {error}") from None
    if not _HOST.fullmatch(address.host) or address.host.isdigit():
        raise ConfigError(f"{option}: {text!r} has no valid host; write HOST:PORT")
    return address


def parse_interfaces(texts: Iterable[str]) -> tuple[str, ...]:
    """Read the addresses that mDNS is limited to.

    Raises:
        ConfigError: if one is not an IP address.
    """
    for text in texts:
        try:
            ipaddress.ip_address(text)
        except ValueError:
            raise ConfigError(
                f"--mdns-interface {text!r} is not an IP address of this machine, such as 192.168.1.7"
            ) from None
    return tuple(texts)


def check_loopback(address: Address) -> Address:
    """Return the gateway's address if only this machine can reach it.

    Raises:
        ConfigError: otherwise: remote HTTP needs API keys, which this version does not have.
    """
    if not is_loopback(address.host):
        raise ConfigError(
            f"--http {address} could be reached from other machines; remote HTTP needs API keys, "
            "which this version does not have. Bind loopback (--http "
            f"127.0.0.1:{address.port}) and use an SSH tunnel from elsewhere: "
            f"ssh -L {address.port}:127.0.0.1:{address.port} HOST"
        )
    return address


def is_loopback(host: str) -> bool:
    """Whether a host (literal or `localhost`) is this machine's loopback interface."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_invite_text(text: str) -> str:
    """Return an invite that has an invite's form; whether it is genuine, the daemon finds out.

    Raises:
        InviteError: if it cannot be one.
    """
    if not _INVITE.fullmatch(text) or len(text) > _MAX_INVITE_LENGTH:
        shown = text if len(text) <= 24 else text[:24] + "…"
        raise InviteError(
            f"{shown!r} is not an invite: one begins with 'mesh1' and has only letters, digits, "
            "'-' and '_'. Copy the whole line that `meshnode invite` printed on the other device"
        )
    return text


def parse_duration(option: str, text: str) -> float:
    """Read a duration such as `90s`, `10m`, `24h` or `7d`.

    Returns:
        Seconds, more than 0.

    Raises:
        ConfigError: if it is not of that form, is zero, or exceeds ten years.
    """
    match = _DURATION.fullmatch(text)
    duration_s = float(match[1]) * _UNIT_S[match[2]] if match else 0.0
    if not 0 < duration_s <= _MAX_DURATION_S:
        raise ConfigError(
            f"{option}: {text!r} is not a duration; write a number and s, m, h or d, "
            "such as 90s, 10m, 24h or 7d (more than 0, at most 10 years)"
        )
    return duration_s
