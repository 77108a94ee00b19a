"""Layers of settings, one per source, resolved into one value per setting.

A `Layer` holds what one source said, unread; `resolve` reads every value of every layer, so that
each fault is told and not only the first, and takes for each setting the value of the highest
layer that names it. A list replaces the list of a lower layer as a whole; each value of membership
is a setting of its own. Then the settings are compared with each other: what contradicts is told
with both sources named.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from meshnode.errors import ConfigError
from meshnode.options import Chosen, JoinOptions, name_from_host
from meshnode.settings.fields import FIELDS, Field, attribute_of
from meshnode.settings.kinds import Kept, Place
from meshnode.settings.tuning import OPTION, PRESETS, TABLE, membership_fields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence


class Kind(StrEnum):
    """Where settings come from."""

    COMMAND_LINE = "command line"
    ENVIRONMENT = "environment"
    ENV_FILE = "env file"
    TOML = "config file"
    KEPT = "kept"
    DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Source:
    """One place that settings come from; `path` where that is a file."""

    kind: Kind
    path: str = ""

    def named(self, key: Field) -> str:
        """Return how a person names this source of a setting, such as `.env (/home/anna/.env)`."""
        match self.kind:
            case Kind.ENVIRONMENT:
                return f"environment {key.variable}"
            case Kind.ENV_FILE | Kind.TOML:
                name = self.path.replace("\\", "/").rpartition("/")[2]
                return f"{name} ({self.path})"
            case Kind.KEPT:
                return "kept from an earlier join"
            case kind:
                return kind.value

    def spelled(self, key: Field) -> str:
        """Return how the setting is spelled in this source, such as `--region`."""
        match self.kind:
            case Kind.COMMAND_LINE if key.option == (OPTION,):
                return f"{OPTION} {key.key.removeprefix(TABLE + '.')}"
            case Kind.COMMAND_LINE:
                return key.option[0].partition("/")[0]
            case Kind.ENVIRONMENT | Kind.ENV_FILE:
                return key.variable
            case _:
                return key.key


COMMAND_LINE: Final = Source(Kind.COMMAND_LINE)
ENVIRONMENT: Final = Source(Kind.ENVIRONMENT)
DEFAULT: Final = Source(Kind.DEFAULT)


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is wrong in one source, or between two (then `source` is None).

    Attributes:
        message: A sentence that begins with the setting as it is spelled there.
        source: Where it is wrong.
        key: The setting or the unknown key; empty where it is neither.
        line: The line of the file, or 0 where it is not known.
    """

    message: str
    source: Source | None = None
    key: str = ""
    line: int = 0

    def __str__(self) -> str:
        """Return the whole sentence, with the file."""
        if self.source is None or not self.source.path:
            return self.message
        if self.source.kind is Kind.KEPT:
            return (
                f"{self.source.path} is damaged ({self.message}); remove it and give the options "
                "of `meshnode join` again"
            )
        line = f", line {self.line}" if self.line else ""
        return f"{self.source.path}{line}: {self.message}"


@dataclass(frozen=True, slots=True)
class Layer:
    """What one source said.

    Attributes:
        source: Which.
        values: What it said of each setting, by key, as it was found.
        folder: Absolute path of the folder from which its relative paths start.
        lines: Lines of the file, by key, where they are known.
        faults: What is not a setting at all, or cannot be read.
    """

    source: Source
    values: Mapping[str, object] = field(default_factory=dict)
    folder: str = ""
    lines: Mapping[str, int] = field(default_factory=dict)
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True, slots=True)
class Machine:
    """What settings depend on besides their sources.

    Attributes:
        host_name: Names a node without a name.
        absolute: Makes a path absolute, given it and the folder it starts from.
        memory_bytes: Returns the machine's memory.
    """

    host_name: str
    absolute: Callable[[str, str], str]
    memory_bytes: Callable[[], int]


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting with its value.

    Attributes:
        field: Which.
        value: Its value.
        source: Where the value is from.
        overridden: Sources that said something else or the same, with their values, highest first.
    """

    field: Field
    value: Any
    source: Source
    overridden: tuple[tuple[Source, Any], ...] = ()

    @property
    def plain(self) -> Any:
        """The value as JSON has it."""
        return self.field.kind.plain(self.value)

    @property
    def text(self) -> str:
        """The value as people read it."""
        if self.source.kind is Kind.DEFAULT and self.plain in (None, []):
            return self.field.default_text or "none"
        return self.field.kind.text(self.value)

    def said(self) -> str:
        """Return the setting with its source, as a message names it."""
        spelled = self.source.spelled(self.field)
        match self.source.kind:
            case Kind.COMMAND_LINE:
                negative = self.field.option[0].partition("/")[2]
                return f"{negative if self.value is False else spelled} on the command line"
            case Kind.ENVIRONMENT:
                return f"{spelled} in the environment"
            case Kind.ENV_FILE | Kind.TOML:
                return f"{spelled} in {self.source.path}"
            case Kind.KEPT:
                return f"{spelled}, kept from an earlier `meshnode join`,"
            case _:
                return f"{spelled} by default"


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings, and what is wrong with them.

    Attributes:
        by_key: Every setting that has a valid value, those of membership too.
        faults: What is wrong, of the highest source first.
        chosen: What is to be kept for the next start.
    """

    by_key: Mapping[str, Setting]
    faults: tuple[Fault, ...]
    chosen: Chosen

    def require_sound(self) -> None:
        """Do nothing if nothing is wrong.

        Raises:
            ConfigError: with the first fault.
        """
        if self.faults:
            more = len(self.faults) - 1
            hint = f" (and {more} more: `meshnode config check` names all)" if more else ""
            raise ConfigError(f"{self.faults[0]}{hint}")

    def options(self, *, data_dir: str, invite: str | None, new: bool) -> JoinOptions:
        """Return them as the daemon takes them.

        Raises:
            ConfigError: if something is wrong with them.
        """
        self.require_sound()
        values = {attribute_of(each): self.by_key[each.key].value for each in FIELDS.values()}
        overrides = {
            key.removeprefix(f"{TABLE}."): each.value
            for key, each in self.by_key.items()
            if key not in FIELDS and each.source.kind is not Kind.DEFAULT
        }
        return JoinOptions(
            **values,
            membership=overrides,
            data_dir=data_dir,
            invite=invite,
            new=new,
            region_chosen=self.by_key["region"].source.kind is not Kind.DEFAULT,
            chosen=self.chosen,
        )


def resolve(layers: Sequence[Layer], machine: Machine, kept: Chosen | None = None) -> Settings:
    """Read all layers and choose one value for each setting.

    Args:
        layers: From the highest to the lowest; defaults are not among them.
        machine: What values depend on.
        kept: What earlier starts chose, which the command line's choices change.

    Returns:
        The settings; whatever is wrong is in their `faults`, and nothing is raised.
    """
    read: dict[str, list[tuple[Source, Any]]] = {}
    given: dict[str, Kept] = {}
    faults: list[Fault] = []
    for layer in layers:
        faults += layer.faults
        for field_, raw, value in _read_layer(layer, machine, faults):
            read.setdefault(field_.key, []).append((layer.source, value))
            if layer.source.kind is Kind.COMMAND_LINE:
                given[field_.key] = field_.kind.kept(raw, value)
    wrong = {fault.key for fault in faults}
    settings = dict(_choose(read, machine))
    faults += [
        Fault(message, None, keys[0])
        for keys, message in _contradictions(settings)
        if not wrong.intersection(keys)
    ]
    mine = next((each for each in layers if each.source.kind is Kind.COMMAND_LINE), None)
    chosen = _chosen(given, TABLE in mine.values if mine else False)
    return Settings(settings, tuple(faults), (kept or Chosen()).changed_by(chosen))


def all_fields() -> Mapping[str, Field]:
    """Return every setting by key, those of membership last."""
    return {**FIELDS, **membership_fields()}


def _read_layer(
    layer: Layer, machine: Machine, faults: list[Fault]
) -> Iterator[tuple[Field, object, Any]]:
    fields = all_fields()
    place = Place(layer.folder, machine.absolute, machine.memory_bytes)
    for key, raw in layer.values.items():
        if (known := fields.get(key)) is None:
            continue  # not a setting: where files are, or the membership table as a whole
        try:
            yield known, raw, known.kind.parse(layer.source.spelled(known), raw, place)
        except ConfigError as error:
            faults.append(Fault(str(error), layer.source, key, layer.lines.get(key, 0)))


def _choose(
    read: Mapping[str, list[tuple[Source, Any]]], machine: Machine
) -> Iterator[tuple[str, Setting]]:
    fields = all_fields()
    profile = read.get("profile", [(DEFAULT, FIELDS["profile"].default)])[0][1]
    for key, known in fields.items():
        if said := read.get(key):
            yield key, Setting(known, said[0][1], said[0][0], tuple(said[1:]))
        elif key == "name":
            yield key, Setting(known, name_from_host(machine.host_name), DEFAULT)
        elif key in FIELDS:
            yield key, Setting(known, known.default, DEFAULT)
        else:
            preset = getattr(PRESETS[profile], key.removeprefix(f"{TABLE}."))
            yield key, Setting(known, preset, DEFAULT)


def _chosen(given: Mapping[str, Kept], membership_given: bool) -> Chosen:
    values = {key: value for key, value in given.items() if key in FIELDS}
    overrides = {
        key.removeprefix(f"{TABLE}."): value for key, value in given.items() if key not in FIELDS
    }
    membership = overrides if membership_given else None
    return Chosen(**values, membership=membership)  # type: ignore[arg-type]


_ORDERED: Final = (
    ("probe_timeout_s", 2.0, "probe_interval_s", "helpers are asked in the other half of the interval"),
    ("late_timer_s", 1.0, "probe_interval_s", "a timer that is late by a whole interval is too late"),
    ("dial_backoff_min_s", 1.0, "dial_backoff_max_s", "the pause between dials grows from one to the other"),
)  # fmt: skip
"""Values of membership of which the second must be at least so many times the first, and why."""


def _contradictions(settings: Mapping[str, Setting]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Find settings that cannot be together: their keys, and the sentence about it."""
    cert, key, http = settings["tls_cert"], settings["tls_key"], settings["http"]
    mdns, interfaces = settings["mdns"], settings["mdns_interfaces"]
    for one, other in ((cert, key), (key, cert)):
        if one.value and not other.value:
            sentence = (
                f"{one.said()} needs {other.field.key} as well, and {other.said()} is none; give both "
                "or neither"
            )
            yield ("tls_cert", "tls_key"), sentence
    about = (
        "allow_hosts",
        "require_key",
        "cors_origins",
        "access_log",
        "grpc",
        "shared_memory",
        "triton_ports",
    )
    for each in (cert, key, *map(settings.__getitem__, about)):
        if each.value and each.source.kind is not Kind.DEFAULT and http.value is None:
            off = "--no-gateway" if http.source == COMMAND_LINE else "http = off"
            sentence = (
                f"{each.said()} is about the gateway, and {off} ({http.source.named(http.field)}) "
                "leaves it out; take one of them back"
            )
            yield (each.field.key, "http"), sentence
    if interfaces.value and not mdns.value:
        sentence = (
            f"{interfaces.said()} says where to announce and {mdns.said()} leaves it out; take one of "
            "them back"
        )
        yield ("mdns_interfaces", "mdns"), sentence
    for lower, factor, upper, reason in _ORDERED:
        low, high = settings[f"{TABLE}.{lower}"], settings[f"{TABLE}.{upper}"]
        if factor * low.value > high.value:
            least = f"{factor:g} x {lower}" if factor != 1 else lower
            sentence = (
                f"{upper} ({high.text}, {_from(high, settings)}) must be at least {least} "
                f"({low.text}, {_from(low, settings)}): {reason}"
            )
            yield (high.field.key, low.field.key), sentence


def _from(setting: Setting, settings: Mapping[str, Setting]) -> str:
    if setting.source.kind is Kind.DEFAULT:
        profile = settings["profile"]
        return f"of profile {profile.value}: {profile.source.named(profile.field)}"
    return setting.source.named(setting.field)
