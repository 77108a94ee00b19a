"""Kinds of values: how each is read from text or TOML, and how it is shown and kept.

Every kind takes what any source can hold: text (command line, environment, `.env`), a list of texts
(a repeatable option), or what TOML has. `parse` raises `ConfigError` with a sentence that begins
with the setting as its owner spelled it; it raises nothing else, whatever it is given.

Every command imports this table, so kinds and fields are msgspec structs: a dataclass takes ten
times as long to make.
"""

from __future__ import annotations

import ipaddress
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from meshnode.errors import ConfigError
from meshnode.limits import MAX_SETTING_LENGTH
from meshnode.models.repository.source_urls import check_url, is_url
from meshnode.options import (
    check_host,
    check_interface,
    check_name,
    check_origin,
    parse_address,
    parse_labels,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.types import Address

_TYPES = {bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "a table"}

_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})
_NONE = frozenset({"", "none"})
_WHOLE = re.compile(r"-?[0-9]{1,15}")
_DECIMAL = re.compile(r"-?[0-9]{1,15}(?:\.[0-9]{1,15})?")
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) ?(B|[KMGT](?:i?B)?)?", re.IGNORECASE)
_PERCENT = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,3})?) ?%")
_POWER = {"K": 1, "M": 2, "G": 3, "T": 4}
_SHOWN = 60  # characters of a wrong value that a message repeats

Kept = str | bool | tuple[str, ...]
"""A value as the kept file has it."""


@dataclass(frozen=True, slots=True)
class Place:
    """What a value's meaning depends on besides its text.

    Attributes:
        folder: Absolute path of the folder that relative paths start from.
        absolute: Makes a path absolute, given it and that folder; raises `ConfigError`.
        memory_bytes: Returns the machine's memory, for sizes in percent.
    """

    folder: str
    absolute: Callable[[str, str], str]
    memory_bytes: Callable[[], int]


class Kind(Protocol):
    """How the values of a setting are read, shown and kept."""

    @property
    def expected(self) -> str:
        """What is expected, such as `a number of 0 to 19`."""

    def parse(self, what: str, raw: object, place: Place) -> Any:
        """Return the value; raise `ConfigError` whose sentence begins with `what`."""

    def plain(self, value: Any) -> Any:
        """Return the value as JSON has it."""

    def text(self, value: Any) -> str:
        """Return the value as people read it."""

    def kept(self, raw: object, value: Any) -> Kept:
        """Return what the kept file holds of a value that was given as `raw`."""


def wrong(what: str, raw: object, expected: str) -> ConfigError:
    """Return the error for a value that is not what is expected."""
    if isinstance(raw, str):
        shown = repr(raw if len(raw) <= _SHOWN else raw[:_SHOWN] + "…")
    else:
        kind = _TYPES.get(type(raw), "a date or time")
        shown = f"({kind})" if isinstance(raw, list | dict) else f"{_brief(raw)} ({kind})"
    return ConfigError(f"{what} {shown} is not {expected}")


def _brief(raw: object) -> str:
    if isinstance(raw, int) and raw.bit_length() > 64:
        return "…"  # Python refuses to write out a number of thousands of digits
    return f"{raw!s:.60}"


def text_of(what: str, raw: object, expected: str) -> str:
    """Return a text that can be a value: not too long, and with characters that a file can hold."""
    if not isinstance(raw, str) or any("\ud800" <= char <= "\udfff" for char in raw):
        raise wrong(what, raw, expected)
    if len(raw) > MAX_SETTING_LENGTH:
        raise ConfigError(
            f"{what} has {len(raw)} characters; at most {MAX_SETTING_LENGTH} are read"
        )
    return raw


def shown(value: Any) -> str:
    """Return a JSON value as people read it."""
    if value is None or value in ("", [], {}):
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return ", ".join(f"{key}={each}" for key, each in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


class _Scalar(msgspec.Struct, frozen=True):
    """What most kinds share: JSON as it is, kept as text."""

    def plain(self, value: Any) -> Any:
        return value

    def text(self, value: Any) -> str:
        return shown(self.plain(value))

    def kept(self, raw: object, value: Any) -> Kept:  # noqa: ARG002 - part of `Kind`
        return "" if value is None else str(value)


class Name(_Scalar, frozen=True):
    """A node's, region's or zone's name; empty only where that means none."""

    may_be_empty: bool = False
    expected: str = "a name"

    def parse(self, what: str, raw: object, place: Place) -> str:  # noqa: ARG002
        """Return the name."""
        text = text_of(what, raw, self.expected)
        return "" if self.may_be_empty and not text else check_name(what, text)


class Choice(_Scalar, frozen=True):
    """One of a few words."""

    words: tuple[str, ...]

    @property
    def expected(self) -> str:
        """What is expected."""
        return " or ".join((", ".join(self.words[:-1]), self.words[-1]))

    def parse(self, what: str, raw: object, place: Place) -> str:  # noqa: ARG002
        """Return the word."""
        if not isinstance(raw, str) or raw.lower() not in self.words:
            raise wrong(what, raw, self.expected)
        return raw.lower()


class Switch(_Scalar, frozen=True):
    """True or false."""

    expected: str = "true or false"

    def parse(self, what: str, raw: object, place: Place) -> bool:  # noqa: ARG002
        """Return it."""
        if isinstance(raw, bool):
            return raw
        word = raw.lower() if isinstance(raw, str) else ""
        if word not in _TRUE | _FALSE:
            raise wrong(what, raw, "true or false (or yes, no, on, off, 1, 0)")
        return word in _TRUE

    def kept(self, raw: object, value: Any) -> Kept:  # noqa: ARG002
        """Return it as it is."""
        return bool(value)


class Number(_Scalar, frozen=True):
    """A number within a range."""

    least: float
    most: float
    whole: bool
    unit: str = ""
    may_be_none: bool = False

    @property
    def expected(self) -> str:
        """What is expected."""
        kind = "a whole number" if self.whole else "a number"
        unit = f" {self.unit}" if self.unit else ""
        return f"{kind} of {self.least:.15g} to {self.most:.15g}{unit}"

    def parse(self, what: str, raw: object, place: Place) -> float | None:  # noqa: ARG002
        """Return the number, or None for none."""
        if self.may_be_none and isinstance(raw, str) and raw.lower() in _NONE:
            return None
        if isinstance(raw, str):
            pattern = _WHOLE if self.whole else _DECIMAL
            if not pattern.fullmatch(raw):
                raise wrong(what, raw, self.expected)
            number: float = int(raw) if self.whole else float(raw)
        elif isinstance(raw, bool) or not isinstance(raw, int if self.whole else int | float):
            raise wrong(what, raw, self.expected)
        else:
            number = raw if self.whole else _as_float(raw)
        if not self.least <= number <= self.most:  # false for NaN
            raise wrong(what, raw, self.expected)
        return number


def _as_float(number: float) -> float:
    try:
        return float(number)
    except OverflowError:  # TOML's whole numbers have no limit
        return math.inf


class Size(_Scalar, frozen=True):
    """An amount of memory: bytes, with a unit, or a share of the machine's."""

    least_bytes: int
    expected: str = "a size such as 8G, 512M, 1.5GiB or 50% of this machine's memory"

    def parse(self, what: str, raw: object, place: Place) -> int | None:
        """Return bytes, or None for no limit."""
        if isinstance(raw, str) and raw.lower() in _NONE:
            return None
        size = self._bytes(raw, place)
        if size is None:
            raise wrong(what, raw, self.expected)
        if not self.least_bytes <= size < 2**62:
            raise ConfigError(
                f"{what} {_brief(raw)} is out of range: at least {self.least_bytes // 2**20}M are "
                "needed; write a size such as 8G, 512M or 50%"
            )
        return size

    def _bytes(self, raw: object, place: Place) -> int | None:
        if isinstance(raw, int) and not isinstance(raw, bool):
            return raw
        if not isinstance(raw, str):
            return None
        if (match := _PERCENT.fullmatch(raw)) and 0 < float(match[1]) <= 100:
            return int(place.memory_bytes() * float(match[1]) / 100)
        if (match := _SIZE.fullmatch(raw)) is None:
            return None
        unit = (match[2] or "B").upper()
        base = 1000 if len(unit) == 2 else 1024  # 8GB is decimal, 8G and 8GiB are binary
        return int(float(match[1]) * base ** _POWER.get(unit[0], 0))

    def text(self, value: Any) -> str:
        """Return it with a unit, as everything else that people read of memory."""
        from meshnode.owner_limits import size_text  # only where one is shown

        return shown(value) if value is None else size_text(value)

    def kept(self, raw: object, value: Any) -> Kept:
        """Keep a share as a share: the machine's memory may be another one next time."""
        return raw if isinstance(raw, str) and value is not None else str(value or "")


class DiskSize(Size, frozen=True):
    """An amount of disk: bytes, with a unit, or a share of the disk, as a number up to 1."""

    expected: str = "a size such as 200G, 512M or 50% of the disk"

    def parse(self, what: str, raw: object, place: Place) -> float | None:  # type: ignore[override]
        """Return bytes, or a share up to 1, or None for no limit."""
        if (
            isinstance(raw, str)
            and (match := _PERCENT.fullmatch(raw))
            and 0 < float(match[1]) <= 100
        ):
            return float(match[1]) / 100
        return super().parse(what, raw, place)

    def text(self, value: Any) -> str:
        """Return it with a unit or as a share, as it was written."""
        return f"{value * 100:g}%" if value is not None and value <= 1 else super().text(value)


class FilePath(_Scalar, frozen=True):
    """A path, made absolute; empty for none."""

    expected: str = "a path"

    def parse(self, what: str, raw: object, place: Place) -> str | None:
        """Return the absolute path, or None for none."""
        text = text_of(what, raw, self.expected)
        if not text or text.lower() == "none":
            return None
        if "\0" in text:
            raise wrong(what, raw, self.expected)
        try:
            return place.absolute(text, place.folder)
        except ConfigError as error:
            raise ConfigError(f"{what}: {error}") from None


class LogPlace(FilePath, frozen=True):
    """Where a log goes: a path, made absolute, or `-` for stdout; empty for none."""

    expected: str = "a path, or - for stdout"

    def parse(self, what: str, raw: object, place: Place) -> str | None:
        """Return the absolute path, `-`, or None for none."""
        return "-" if text_of(what, raw, self.expected) == "-" else super().parse(what, raw, place)


class ModelPlace(FilePath, frozen=True):
    """Where models lie: a path, made absolute, or a URL; empty for none."""

    expected: str = "a path or a URL"

    def parse(self, what: str, raw: object, place: Place) -> str | None:
        """Return the absolute path or the URL, or None for none."""
        text = text_of(what, raw, self.expected)
        if not is_url(text):
            return super().parse(what, raw, place)
        try:
            return check_url(text)
        except ConfigError as error:
            raise ConfigError(f"{what}: {error}") from None


class HostPort(_Scalar, frozen=True):
    """An address; `off` for none where that is possible."""

    default_port: int
    may_be_off: bool = False
    expected: str = "HOST:PORT"

    def parse(self, what: str, raw: object, place: Place) -> Address | None:  # noqa: ARG002
        """Return the address, or None for off."""
        if self.may_be_off and (raw is False or _is_word(raw, _NONE | {"off", "false"})):
            return None
        return parse_address(what, text_of(what, raw, self.expected), self.default_port)

    def plain(self, value: Any) -> Any:
        """Return its text."""
        return None if value is None else str(value)


def _is_word(raw: object, words: frozenset[str]) -> bool:
    return isinstance(raw, str) and raw.lower() in words


class PublicAddress(HostPort, frozen=True):
    """An address that others dial: no wildcard; port 0 stands for the one that is listened at."""

    def parse(self, what: str, raw: object, place: Place) -> Address:  # noqa: ARG002
        """Return the address."""
        address = parse_address(what, text_of(what, raw, self.expected), self.default_port)
        if address.host in ("0.0.0.0", "::"):  # noqa: S104
            raise ConfigError(
                f"{what} {address} cannot be dialled by others; give the host and port that reach "
                "this node from outside"
            )
        return address


class HostName(_Scalar, frozen=True):
    """A host's name or IP address, without a port."""

    expected: str = "a host name"

    def parse(self, what: str, raw: object, place: Place) -> str:  # noqa: ARG002
        """Return it in lower case."""
        return check_host(what, text_of(what, raw, self.expected))


class Origin(_Scalar, frozen=True):
    """A web page's origin, or `*` for all."""

    expected: str = "an origin"

    def parse(self, what: str, raw: object, place: Place) -> str:  # noqa: ARG002
        """Return it in lower case."""
        return check_origin(what, text_of(what, raw, self.expected))


class NetworkText(_Scalar, frozen=True):
    """A network of IP addresses."""

    expected: str = "a network such as 10.0.0.0/8"

    def parse(self, what: str, raw: object, place: Place) -> str:  # noqa: ARG002
        """Return it as networks are written."""
        text = text_of(what, raw, self.expected)
        try:
            return str(ipaddress.ip_network(text))
        except ValueError as error:
            raise ConfigError(f"{what}: {text[:60]!r} is no network: {error}") from error


class InterfaceAddress(_Scalar, frozen=True):
    """An IP address of this machine."""

    expected: str = "an IP address"

    def parse(self, what: str, raw: object, place: Place) -> str:  # noqa: ARG002
        """Return it as given."""
        return check_interface(what, text_of(what, raw, self.expected))


class ListOf(msgspec.Struct, frozen=True):
    """Several values of one kind: a list, or text with commas."""

    item: Kind
    most: int

    @property
    def expected(self) -> str:
        """What is expected."""
        return f"a list, each {self.item.expected}"

    def parse(self, what: str, raw: object, place: Place) -> tuple[Any, ...]:
        """Return the values, each once, in the order given."""
        items = items_of(what, raw, self.expected)
        values = tuple(dict.fromkeys(self.item.parse(what, each, place) for each in items))
        if len(values) > self.most:
            raise ConfigError(f"{what} has {len(values)} values; at most {self.most} are allowed")
        return values

    def plain(self, value: Any) -> Any:
        """Return a list."""
        return [self.item.plain(each) for each in value]

    def text(self, value: Any) -> str:
        """Return them with commas."""
        return shown(self.plain(value))

    def kept(self, raw: object, value: Any) -> Kept:  # noqa: ARG002
        """Return texts."""
        return tuple(map(str, value))


def items_of(what: str, raw: object, expected: str) -> list[str]:
    """Return the texts of a list, or of text with commas; empty ones do not count, nor does `none` alone."""
    if isinstance(raw, str):
        raw = [each.strip() for each in text_of(what, raw, expected).split(",")]
    if not isinstance(raw, list | tuple):
        raise wrong(what, raw, expected)
    items = [text_of(what, each, expected) for each in raw if each != ""]
    return [] if {each.lower() for each in items} == {"none"} else items


class Labels(msgspec.Struct, frozen=True):
    """Pairs of key and value: a list of `key=value`, text with commas, or a TOML table."""

    expected: str = "KEY=VALUE"

    def parse(self, what: str, raw: object, place: Place) -> tuple[tuple[str, str], ...]:  # noqa: ARG002
        """Return the pairs."""
        if isinstance(raw, dict):
            for key, value in raw.items():
                if not isinstance(value, str) or "=" in key:
                    raise wrong(f"{what}.{key}", value, "a text of letters, digits, '-', '_', '.'")
            return parse_labels(what, [f"{key}={value}" for key, value in raw.items()])
        return parse_labels(what, items_of(what, raw, "a list of KEY=VALUE, or a table"))

    def plain(self, value: Any) -> Any:
        """Return an object."""
        return dict(value)

    def text(self, value: Any) -> str:
        """Return the pairs with commas."""
        return shown(self.plain(value))

    def kept(self, raw: object, value: Any) -> Kept:  # noqa: ARG002
        """Return texts."""
        return tuple(f"{key}={each}" for key, each in value)
