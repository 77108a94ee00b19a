"""From the text of each source to its layer: which keys are settings, and which are mistakes.

An unknown key is a mistake everywhere, told with the nearest known one. The environment has one
exception: a pod in a Kubernetes cluster with a service named `meshnode` is given variables such as
`MESHNODE_PORT=tcp://10.0.0.9:8470` and `MESHNODE_SERVICE_HOST`, which nobody wrote.
"""

from __future__ import annotations

import difflib
import io
import re
from typing import TYPE_CHECKING, Final

import msgspec

from meshnode.limits import MAX_SETTING_LENGTH
from meshnode.settings.fields import FIELDS, PREFIX
from meshnode.settings.layers import (
    COMMAND_LINE,
    ENVIRONMENT,
    Fault,
    Kind,
    Layer,
    Source,
    all_fields,
)
from meshnode.settings.tuning import OPTION, TABLE, membership_fields

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from meshnode.options import Chosen

DATA_DIR: Final = "MESHNODE_DATA_DIR"
CONFIG: Final = "MESHNODE_CONFIG"
ENV_FILE: Final = "MESHNODE_ENV_FILE"

OTHER_VARIABLES: Final = frozenset(
    {DATA_DIR, CONFIG, ENV_FILE, "MESHNODE_GATEWAY", "MESHNODE_URL", "MESHNODE_CA_FILE"}
    | {"MESHNODE_API_KEY", "MESHNODE_API_KEY_FILE"}
)
"""Variables that are no settings of a node: where its files are, and what clients use."""

_IN_KUBERNETES: Final = "KUBERNETES_SERVICE_HOST"
"""What every pod is given, wherever services are told by variables."""

_LINK = r"(?:tcp|udp|sctp)://[0-9A-Fa-f.:\[\]]+"
_SERVICE_LINK = re.compile(
    r"MESHNODE(?:_[A-Z0-9_]+)?_(?:"  # of a service `meshnode`, or of one such as `meshnode-http`
    r"SERVICE_HOST=[0-9A-Fa-f.:]+"
    r"|SERVICE_PORT(?:_[A-Z0-9_]+)?=[0-9]+"
    rf"|PORT={_LINK}"
    rf"|PORT_[0-9]+_(?:TCP|UDP|SCTP)(?:={_LINK}|_PROTO=(?:tcp|udp|sctp)|_PORT=[0-9]+|_ADDR=[0-9A-Fa-f.:]+))"
)
"""The variables of one service and their values, as `NAME=VALUE` (Kubernetes, "Service": variables)."""
_SHOWN = 60  # characters of an unknown key that a message repeats


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the nearest known name, or nothing if none is near.

    Names that differ in nothing but capitals are as near as can be.
    """
    by_folded = {each.casefold(): each for each in known}
    found = difflib.get_close_matches(name[:_SHOWN].casefold(), list(by_folded), n=1)
    return f"; did you mean {by_folded[found[0]]!r}?" if found else ""


def from_command_line(
    given: Mapping[str, object], membership: list[str] | None, folder: str
) -> Layer:
    """Return the layer of what was typed.

    Args:
        given: What each option said, by the setting's key; only those that were given.
        membership: What every `--membership` said, or None if there was none.
        folder: The working folder.
    """
    values, faults = dict(given), list[Fault]()
    if membership is not None:
        values[TABLE] = True  # even `--membership ''`, which takes back what is kept
    names = [key.removeprefix(f"{TABLE}.") for key in membership_fields()]
    for text in filter(None, membership or ()):
        name, equals, value = text.partition("=")
        if not equals:
            message = f"{OPTION} {text[:_SHOWN]!r} is not NAME=VALUE, such as probe_interval_s=2"
            faults.append(Fault(message, COMMAND_LINE, TABLE))
        elif name not in names:
            message = f"{OPTION}: unknown name {name[:_SHOWN]!r}{nearest(name, names)}"
            faults.append(Fault(message, COMMAND_LINE, TABLE))
        else:
            values[f"{TABLE}.{name}"] = value
    return Layer(COMMAND_LINE, values, folder, faults=tuple(faults))


def from_environment(environ: Mapping[str, str], folder: str) -> Layer:
    """Return the layer of the environment's `MESHNODE_` variables.

    An empty variable counts as missing, as `${REGION}` of an unset one arrives in a container.

    Args:
        environ: All variables.
        folder: The working folder.
    """
    is_pod = bool(environ.get(_IN_KUBERNETES))
    ours = (
        (name, value, 0)
        for name, value in environ.items()
        if name.startswith(PREFIX)
        and not (is_pod and _SERVICE_LINK.fullmatch(f"{name}={value}"))  # a cluster made it
    )
    return _from_variables(ours, ENVIRONMENT, OTHER_VARIABLES, folder, ())


def from_env_file(text: str, path: str, folder: str) -> Layer:
    """Return the layer of an `.env` file: its `MESHNODE_` variables; others are not ours to judge.

    Values are taken as they are: `${…}` is not expanded.

    Args:
        text: What the file holds.
        path: Absolute path of the file.
        folder: The working folder.
    """
    source = Source(Kind.ENV_FILE, path)
    pairs, faults = env_file_pairs(text, source)
    ours = ((name, value, line) for name, value, line in pairs if name.startswith(PREFIX))
    return _from_variables(ours, source, OTHER_VARIABLES - {ENV_FILE}, folder, faults)


def env_file_pairs(text: str, source: Source) -> tuple[list[tuple[str, str, int]], list[Fault]]:
    """Return name, value and line of each variable of an `.env` file, and what cannot be read."""
    from dotenv.parser import parse_stream

    pairs, faults = list[tuple[str, str, int]](), list[Fault]()
    for binding in parse_stream(io.StringIO(text)):
        written = binding.original.string
        leading = written[: len(written) - len(written.lstrip())]
        line = binding.original.line + len(re.findall(r"\r\n|\n|\r", leading))
        if binding.error:
            message = "this line is not NAME=VALUE, or a quotation mark is not closed"
            faults.append(Fault(message, source, "", line))
        elif binding.key is not None and binding.value is not None:
            pairs.append((binding.key, binding.value, line))
        elif binding.key is not None and binding.key.startswith(PREFIX):
            message = f"{binding.key[:_SHOWN]} has no value; write {binding.key[:_SHOWN]}=VALUE"
            faults.append(Fault(message, source, binding.key, line))
    return pairs, faults


def _variables() -> Mapping[str, str]:
    """Return the keys of all settings by their variables."""
    return {field.variable: key for key, field in all_fields().items()}


def _from_variables(
    pairs: Iterable[tuple[str, str, int]],
    source: Source,
    others: frozenset[str],
    folder: str,
    faults: Iterable[Fault],
) -> Layer:
    known, found = _variables(), list(faults)
    values, lines = dict[str, object](), dict[str, int]()  # other variables by their own name
    for name, value, line in pairs:
        if name in known:
            if value:
                values[known[name]], lines[known[name]] = value, line
        elif name in others:
            values[name] = value
        else:
            where = " in the environment" if source == ENVIRONMENT else ""
            near = nearest(name, {*known, *others})
            message = f"unknown variable {name[:_SHOWN]!r}{where}{near}"
            found.append(Fault(message, source, name, line))
    return Layer(source, values, folder, lines, tuple(found))


def from_toml(text: str, path: str, folder: str) -> Layer:
    """Return the layer of a TOML file.

    Args:
        text: What the file holds.
        path: Absolute path of the file.
        folder: Absolute path of its folder.
    """
    import tomllib

    source = Source(Kind.TOML, path)
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is a ValueError
        message = (
            f"this is not TOML: {error}" if str(error) else "this is not TOML: nested too deeply"
        )
        return Layer(source, faults=(Fault(message[:MAX_SETTING_LENGTH], source),))
    values, faults = dict[str, object](), list[Fault]()
    for key, value in document.items():
        if key in FIELDS:
            values[key] = value
        elif key == TABLE and isinstance(value, dict):
            faults += _membership_table(value, source, values)
        else:
            faults.append(Fault(_unknown_key(key, value), source, key))
    return Layer(source, values, folder, faults=tuple(faults))


def _unknown_key(key: str, value: object) -> str:
    if key == "data_dir":
        return (
            "data_dir cannot be set here, since it says where this file is; use --data-dir or "
            f"{DATA_DIR}"
        )
    if key == TABLE:
        return f"{TABLE} is a table: write [{TABLE}], and one NAME = VALUE per line below it"
    is_table = isinstance(value, dict) or (
        isinstance(value, list) and any(isinstance(each, dict) for each in value)
    )
    if is_table:
        near = nearest(key.replace("-", "_"), [TABLE, "labels"])
        return (
            f"unknown table [{key[:_SHOWN]}]{near or '; there is no table but [' + TABLE + ']'}; "
            "write settings at the top of the file, above every table"
        )
    return f"unknown key {key[:_SHOWN]!r}{nearest(key.replace('-', '_'), [*FIELDS, TABLE])}"


def _membership_table(
    table: Mapping[str, object], source: Source, values: dict[str, object]
) -> Iterator[Fault]:
    names = [key.removeprefix(f"{TABLE}.") for key in membership_fields()]
    for name, value in table.items():
        if name in names:
            values[f"{TABLE}.{name}"] = value
        else:
            key = f"{TABLE}.{name}"
            near = nearest(name.replace("-", "_"), names)
            yield Fault(f"unknown key {key[:_SHOWN]!r}{near}", source, key)


def from_kept(chosen: Chosen, path: str) -> Layer:
    """Return the layer of what earlier `meshnode join` command lines chose.

    Args:
        chosen: What they chose.
        path: Absolute path of the file.
    """
    source = Source(Kind.KEPT, path)
    said = {
        key: value for key, value in msgspec.structs.asdict(chosen).items() if value is not None
    }
    known = membership_fields()
    for name, value in said.pop(TABLE, {}).items():
        if f"{TABLE}.{name}" in known:  # those of later versions are ignored, like other fields
            said[f"{TABLE}.{name}"] = value
    return Layer(source, said)
