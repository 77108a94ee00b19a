"""What `meshnode join` was asked for: plain data and the rules that its text forms follow.

The command line reads strings; the daemon wants values. Everything here is pure, so that the
simulator, tests and other front ends make the same `JoinOptions` without a command line.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from meshnode.errors import ConfigError, InviteError
from meshnode.limits import (
    MAX_DURATION_S,
    MAX_HOST_LENGTH,
    MAX_INVITE_LENGTH,
    MAX_LABELS,
    MAX_NAME_LENGTH,
    MODELS_POLL_S,
    RESPONSE_CACHE_BYTES,
)
from meshnode.types import Address

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_NAME = re.compile(rf"[A-Za-z0-9._-]{{1,{MAX_NAME_LENGTH}}}")
_NOT_IN_NAME = re.compile(r"[^A-Za-z0-9._-]+")
_HOST = re.compile(rf"[A-Za-z0-9._:%-]{{1,{MAX_HOST_LENGTH}}}")
_ORIGIN = re.compile(r"https?://(?:[a-z0-9._-]{1,253}|\[[0-9a-f:.]{2,45}\])(?::[0-9]{1,5})?")
_INVITE = re.compile(r"mesh1[A-Za-z0-9_-]+")
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)(s|m|h|d)")
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

DEFAULT_MESH_PORT: Final = 8471
"""TCP and UDP port of the mesh."""

DEFAULT_HTTP_PORT: Final = 8470
"""Port of the HTTP gateway."""

DEFAULT_GRPC_PORT: Final = 8472
"""Port of the gateway's gRPC."""

DEFAULT_LISTEN = Address("::", DEFAULT_MESH_PORT)
"""Where the mesh listens unless told otherwise: all of IPv6 and IPv4, or of IPv4 alone where a
machine has no IPv6."""

DEFAULT_HTTP = Address("127.0.0.1", DEFAULT_HTTP_PORT)
"""Where the HTTP gateway listens unless told otherwise."""

DEFAULT_GRPC = Address("", DEFAULT_GRPC_PORT)
"""Where gRPC is served unless told otherwise: at the gateway's host, if that can be; else not at all."""


DEFAULT_REGION = "default"
"""Where a node is unless told otherwise."""


class Chosen(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What a node's owner chose, as text, kept for its next start; None where nothing was chosen.

    What was not chosen is not kept, so that it follows the machine's name and later defaults. Only
    the command line's choices are kept: files and variables speak for themselves at each start.

    Attributes:
        name: The node's name.
        region: Where it is.
        zone: A place within the region; empty for none.
        labels: Each `KEY=VALUE`.
        listen: Address of the mesh; port 0 stays 0: any free one, at each start.
        http: Address of the gateway; empty for no gateway.
        models: Absolute path or URL of a model repository; empty for none.
        models_poll: Seconds; 0 for never.
        advertise: Addresses told to others.
        mdns: Whether the local network is used.
        mdns_interfaces: IP addresses that this is limited to.
        relay: Whether it relays between nodes that cannot dial each other.
        profile: Preset of membership's settings.
        membership: Fields of it that differ, as text; replaced as a whole, like lists.
        allow_hosts: Further names of the gateway.
        require_key: Whether the gateway wants a key of everybody.
        cors_origins: Origins of other pages that may use the gateway.
        allow_outbound: Networks that URLs of callers may lead to besides public addresses.
        access_log: Absolute path, or `-`; empty for none.
        decision_log: Absolute path; empty for none.
        grpc: Address of gRPC; empty for none.
        shared_memory: Whether programs on this machine may hand tensors over in shared memory.
        triton_ports: Whether the gateway also listens at Triton's ports.
        tls_cert: Absolute path; empty for none.
        tls_key: Absolute path; empty for none.
        max_memory: A size or share; empty for no limit.
        response_cache: A size or share; empty for none.
        max_disk: A size or share; empty for no limit.
        max_cpus: A number; empty for all.
        nice: A number; empty to leave it.
        only_on_mains: Whether it serves on mains only.
        max_temperature: A number; empty for no limit.
        cost: A number.
        allow_code: Whether models that are code may run.
        log_level: The least severe messages.
        log_format: Form of the log on stderr.
    """

    name: str | None = None
    region: str | None = None
    zone: str | None = None
    labels: tuple[str, ...] | None = None
    listen: str | None = None
    http: str | None = None
    models: str | None = None
    models_poll: str | None = None
    advertise: tuple[str, ...] | None = None
    mdns: bool | None = None
    mdns_interfaces: tuple[str, ...] | None = None
    relay: bool | None = None
    profile: str | None = None
    membership: dict[str, str] | None = None
    allow_hosts: tuple[str, ...] | None = None
    require_key: bool | None = None
    cors_origins: tuple[str, ...] | None = None
    allow_outbound: tuple[str, ...] | None = None
    access_log: str | None = None
    decision_log: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    grpc: str | None = None
    shared_memory: bool | None = None
    triton_ports: bool | None = None
    max_memory: str | None = None
    response_cache: str | None = None
    max_disk: str | None = None
    max_cpus: str | None = None
    nice: str | None = None
    only_on_mains: bool | None = None
    max_temperature: str | None = None
    cost: str | None = None
    allow_code: bool | None = None
    log_level: str | None = None
    log_format: str | None = None

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

        Whether its texts follow their rules is found out with all other settings (`settings`).

        Raises:
            ConfigError: if it is something else.
        """
        try:
            return msgspec.json.decode(data, type=cls)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ConfigError(str(error)) from None


Profile = Literal["lan", "wan"]
"""Presets of membership's settings."""

LogLevel = Literal["debug", "info", "warning", "error"]
"""How severe a message must be to be logged."""

LogFormat = Literal["text", "json"]
"""What the log on stderr looks like."""


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
        models: Absolute path or URL of a model repository whose every model this node serves, or None.
        new: Found a mesh without looking for others.
        rejoin: Be a member already, or do not start: never found a mesh.
        ask: The mesh or node to ask for admission, as typed, or None.
        on_terminal: Whether a person can be asked which mesh is meant, and sees what is printed.
        mdns: Announce this node and look for others on the local network.
        mdns_interfaces: IP addresses of this machine whose networks that is limited to; empty for
            all that are suitable.
        relay: Relay between nodes that have links to this one and none to each other.
        advertise: Addresses that others are told instead of those found on the interfaces; empty
            for the found ones.
        allow_hosts: Names besides its own addresses under which the gateway may be asked.
        require_key: The gateway wants a key of every caller, programs on this machine included.
        cors_origins: Other origins whose pages may use the gateway; `*` for all.
        allow_outbound: Networks that URLs of callers may lead to besides public addresses: `10.0.0.0/8`.
        access_log: Absolute path of the file that has a line for each request, `-` for stdout, or None.
        decision_log: Absolute path of the file for decisions about requests, or None.
        grpc: Address of the gateway's gRPC, or None for none; without a host (`DEFAULT_GRPC`), at the gateway's if
            it can be served there.
        shared_memory: Programs on this machine may hand tensors over in shared memory.
        triton_ports: The gateway also listens at Triton's ports (`meshnode.daemon.triton_ports`).
        tls_cert: Absolute path of the gateway's certificate chain (PEM), or None for plain HTTP.
        tls_key: Absolute path of its private key (PEM); given exactly where `tls_cert` is.
        profile: Which preset of `MembershipConfig` this node follows.
        membership: Fields of `MembershipConfig` that differ from the preset.
        region_chosen: Whether its owner named that region; if not, the one of its invite counts.
        max_memory_bytes: What this node may take of the machine's memory, or None for no limit.
        response_cache_bytes: Memory for answers that are kept, or None to keep none.
        max_disk: What models may take of the disk: bytes, or a share of it up to 1; None for no limit.
        max_cpus: How many processors it may use, or None for all.
        nice: Its scheduling priority, 0 to 19, or None to leave it as it was started.
        only_on_mains: Serve models only while the machine is not running on battery.
        max_temperature_c: Serve models only below this temperature, in degrees Celsius, or None.
        cost: What an hour of this machine costs, in a unit that the mesh's owners agree on; 0 for nothing.
        allow_code: Run models that are code, wherever they come from.
        log_level: The least severe messages that are logged.
        log_format: What the log on stderr looks like; the log file is always JSON lines.
        config_files: The files that settings came from, to be shown.
        models_poll_s: How often `models` is looked at, in seconds; 0 for once.
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
    rejoin: bool = False
    ask: str | None = None
    on_terminal: bool = False
    mdns_interfaces: tuple[str, ...] = ()
    relay: bool = True
    advertise: tuple[Address, ...] = ()
    allow_hosts: tuple[str, ...] = ()
    require_key: bool = False
    cors_origins: tuple[str, ...] = ()
    allow_outbound: tuple[str, ...] = ()
    access_log: str | None = None
    decision_log: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    grpc: Address | None = None
    shared_memory: bool = False
    triton_ports: bool = False
    profile: Profile = "lan"
    membership: Mapping[str, float] = field(default_factory=dict)
    region_chosen: bool = False
    max_memory_bytes: int | None = None
    response_cache_bytes: int | None = RESPONSE_CACHE_BYTES
    max_disk: float | None = None
    max_cpus: int | None = None
    nice: int | None = None
    only_on_mains: bool = False
    max_temperature_c: float | None = None
    cost: float = 0.0
    allow_code: bool = False
    log_level: LogLevel = "info"
    log_format: LogFormat = "text"
    config_files: tuple[str, ...] = ()
    models_poll_s: float = MODELS_POLL_S
    chosen: Chosen = field(default_factory=Chosen)

    @property
    def is_key_required_here(self) -> bool:
        """Whether programs on this machine need a key, too.

        A gateway with a public name is behind a proxy, or will be; from a proxy on this machine
        everybody seems to come from here.
        """
        return self.require_key or bool(self.allow_hosts)


def no_mesh_to_rejoin(data_dir: str) -> str:
    """Return what to say where a start may only rejoin and the folder belongs to no mesh."""
    return (
        f"{data_dir} belongs to no mesh, perhaps since `meshnode leave`, and this start may only rejoin "
        "one; join or found a mesh first: meshnode join, with an invite or without"
    )


def is_name(text: str) -> bool:
    """Whether a text follows the rule for names of nodes, regions and zones."""
    return _NAME.fullmatch(text) is not None


def check_name(what: str, text: str) -> str:
    """Return a node's, region's or zone's name if it follows the rule.

    Args:
        what: What it names, for the message, such as `--region`.
        text: The name.

    Raises:
        ConfigError: if it does not; the message says the rule.
    """
    if not is_name(text):
        raise ConfigError(
            f"{what} {text!r} is not a name: use 1 to {MAX_NAME_LENGTH} letters, digits, "
            "'-', '_' or '.'"
        )
    return text


def name_from_host(host_name: str) -> str:
    """Make a node's name from the machine's: its first label, other characters as `-`."""
    first_label = host_name.split(".", maxsplit=1)[0]
    return _NOT_IN_NAME.sub("-", first_label)[:MAX_NAME_LENGTH].strip("-") or "node"


def parse_labels(what: str, texts: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Read labels of the form `key=value`; a value may be empty.

    Args:
        what: What they were given as, for the message, such as `--label`.
        texts: The labels.

    Raises:
        ConfigError: if one is not of that form, a key comes twice, or there are too many.
    """
    labels: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not _NAME.fullmatch(key) or (value and not _NAME.fullmatch(value)):
            raise ConfigError(
                f"{what} {text!r} is not KEY=VALUE of letters, digits, '-', '_' or '.', "
                f"at most {MAX_NAME_LENGTH} each; for example: gpu=a100"
            )
        if key in labels:
            raise ConfigError(f"{what} {key!r} is given twice; a node has one value per label")
        labels[key] = value
    if len(labels) > MAX_LABELS:
        raise ConfigError(f"{what}: {len(labels)} are given; a node has at most {MAX_LABELS}")
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


def check_interface(what: str, text: str) -> str:
    """Return the IP address of an interface, as mDNS is limited to.

    Raises:
        ConfigError: if it is not an IP address; the message begins with `what`.
    """
    if not _is_ip(text):
        raise ConfigError(
            f"{what} {text!r} is not an IP address of this machine, such as 192.168.1.7"
        )
    return text


def check_host(what: str, text: str) -> str:
    """Return a host's name (or IP address without brackets), in lower case.

    Raises:
        ConfigError: if it is not one; the message begins with `what`.
    """
    host = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if not (_HOST.fullmatch(host) and not host.isdigit() and (":" not in host or _is_ip(host))):
        raise ConfigError(
            f"{what} {text!r} is not a host's name, such as mesh.example.org (without a port)"
        )
    return host.lower()


def check_origin(what: str, text: str) -> str:
    """Return a web page's origin in lower case, or `*`.

    Raises:
        ConfigError: if it is not one; the message begins with `what`.
    """
    origin = text.lower()
    if origin != "*" and not _ORIGIN.fullmatch(origin):
        raise ConfigError(
            f"{what} {text!r} is not an origin: write it as browsers send it, https://app.example.org or "
            "http://localhost:3000 (no path, no slash at its end), or * for all"
        )
    return origin


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether a host (literal or `localhost`) is this machine's loopback interface."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


ONLY_HERE: Final = (
    "It names loopback addresses only, because this node is in no network, or listens on none: it serves "
    "other nodes on the same machine. For other devices, connect a network and make another invite, or start the node "
    "with --advertise HOST:PORT."
)
"""What to say of an invite that is `only_here`."""


def only_here(addresses: Iterable[str]) -> bool:
    """Whether `HOST:PORT` addresses all lead to the machine itself."""
    return all(is_loopback(address.rpartition(":")[0].strip("[]")) for address in addresses)


def check_invite_text(text: str) -> str:
    """Return an invite that has an invite's form; whether it is genuine, the daemon finds out.

    Raises:
        InviteError: if it cannot be one.
    """
    if not _INVITE.fullmatch(text) or len(text) > MAX_INVITE_LENGTH:
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
    if not 0 < duration_s <= MAX_DURATION_S:
        raise ConfigError(
            f"{option}: {text!r} is not a duration; write a number and s, m, h or d, "
            "such as 90s, 10m, 24h or 7d (more than 0, at most 10 years)"
        )
    return duration_s
