"""What a file says of deployments: TOML or YAML to `DeploymentSpec`, with every mistake at once.

One deployment stands at the top of a file. Several are a list under `deployment` (`[[deployment]]` in TOML), or the
documents of one YAML file. The keys are the same in both, and in the JSON of `/mesh/v1/deployments`.

What a deployment leaves out has its default: a file is the whole definition.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import msgspec

from meshnode.deployment_tables import Fault, read_table
from meshnode.deployment_values import (
    amount,
    flag,
    metric_table,
    model_text,
    names,
    note,
    number,
    public_name,
    revision,
    route,
    size,
    task_texts,
    text_table,
    variables,
    variant_table,
    versions,
    word,
    words,
)
from meshnode.errors import ConfigError, InvalidRequest
from meshnode.limits import (
    MAX_CLAIMED_CPUS,
    MAX_DEPLOYMENT_FILE_BYTES,
    MAX_DEPLOYMENT_REPLICAS,
    MAX_DEPLOYMENTS_PER_FILE,
    MAX_IDLE_S,
    MAX_SCALING_DELAY_S,
    MAX_SCALING_TARGET,
    MAX_STABLE_WINDOW_S,
    MAX_STANDBY_REPLICAS,
)
from meshnode.release_file import RELEASE_KEYS, read_release
from meshnode.state.constraints import ANYWHERE, ESTIMATED, Constraints, Resources, flaws
from meshnode.state.deployment import environment_flaw
from meshnode.state.release import Release
from meshnode.state.scaling import LEAST_WINDOW_S, SHARES, TARGETS, Scaling, scaling_flaws
from meshnode.yaml_text import read_yaml

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from meshnode.deployment_tables import Readers

Format = Literal["toml", "yaml"]

SEVERAL: Final = "deployment"
"""The key under which a file has several deployments."""

_SHOWN: Final = 60  # characters of an unknown key that a message repeats


class DeploymentSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be served under a name, as its owner writes it.

    Attributes:
        name: The public name.
        model: Where its files are: a path (relative to the file that says so), a URL, or the name of what was
            published; empty to say nothing of it.
        versions: Of what was published: these; empty for the newest.
        replicas: How many nodes are to serve each version.
        on: Names or ids of the nodes that shall; empty to let placement choose.
        enabled: Whether it is served.
        path: A path under which it is offered too; empty for none, None for what its configuration says.
        tasks: What it does for clients that know only tasks; None likewise.
        cache: Whether answers are kept; None likewise.
        metrics: How good it was found to be, (name, value), sorted.
        note: What is said of it.
        variants: Its further forms, (name, path), sorted.
        standby: Further nodes that keep it ready.
        where: What a node must be.
        resources: What one replica takes.
        env: Variables, (name, value), sorted.
        scaling: What the number of replicas follows; None for a fixed number.
        release: How a new version takes the place of the old one, without their numbers; None for directly.
        revision: The revision that this was made from; empty for whichever is there.
    """

    name: str
    model: str
    versions: tuple[int, ...] = ()
    replicas: int = 1
    on: tuple[str, ...] = ()
    enabled: bool = True
    path: str | None = None
    tasks: tuple[str, ...] | None = None
    cache: bool | None = None
    metrics: tuple[tuple[str, float], ...] = ()
    note: str = ""
    variants: tuple[tuple[str, str], ...] = ()
    standby: int = 0
    where: Constraints = ANYWHERE
    resources: Resources = ESTIMATED
    env: tuple[tuple[str, str], ...] = ()
    scaling: Scaling | None = None
    release: Release | None = None
    revision: str = ""


class Found(NamedTuple):
    """One deployment of a file.

    Attributes:
        spec: What it says.
        source: The file's name.
        prefix: What its keys begin with in messages, such as `deployment[2].`; empty if it is the only one.
        lines: The line of each key, as far as that is known.
    """

    spec: DeploymentSpec
    source: str
    prefix: str = ""
    lines: Mapping[str, int] = {}

    def fault(self, key: str, sentence: str) -> str:
        """Return a mistake that turned out later, as those of the file are told."""
        return Fault(self.prefix + key, sentence, self.lines.get(key, 0)).told(self.source)


_READERS: Final[dict[str, Callable[[object], Any]]] = {
    "name": public_name,
    "model": model_text,
    "version": versions,
    "replicas": number(1, MAX_DEPLOYMENT_REPLICAS),
    "on": names,
    "enabled": flag,
    "path": route,
    "tasks": task_texts,
    "cache": flag,
    "metrics": metric_table,
    "note": note,
    "variants": variant_table,
    "standby": number(0, MAX_STANDBY_REPLICAS),
    "env": variables,
    "revision": revision,
}
_WHERE: Final[dict[str, Callable[[object], Any]]] = {
    "regions": words,
    "labels": text_table,
    "accelerator": word,
    "accelerator_memory": size,
    "memory": size,
    "runtime": word,
    "on_mains": flag,
}
_RESOURCES: Final[dict[str, Callable[[object], Any]]] = {
    "memory": size,
    "cpus": amount(0, MAX_CLAIMED_CPUS),
}
_AUTOSCALING: Final[dict[str, Callable[[object], Any]]] = {
    "min": number(0, MAX_DEPLOYMENT_REPLICAS),
    "max": number(1, MAX_DEPLOYMENT_REPLICAS),
    **{key: amount(0, 1 if key in SHARES else MAX_SCALING_TARGET) for key in TARGETS},
    "stable_window_s": amount(LEAST_WINDOW_S, MAX_STABLE_WINDOW_S),
    "panic_window_s": amount(LEAST_WINDOW_S, MAX_STABLE_WINDOW_S),
    "panic_threshold": amount(1.1, 1000),
    "tolerance": amount(0, 1),
    "up_delay_s": amount(0, MAX_SCALING_DELAY_S),
    "down_delay_s": amount(0, MAX_SCALING_DELAY_S),
    "idle_s": amount(1, MAX_IDLE_S),
}
_TABLES: Final = {"where": _WHERE, "resources": _RESOURCES, "autoscaling": _AUTOSCALING}
_FIELDS: Final = {
    "version": "versions",
    "accelerator_memory": "accelerator_memory_bytes",
    "memory": "memory_bytes",
}
"""Keys that are called otherwise in the structs."""

SCALING_FIELDS: Final = {"min": "min_replicas", "max": "max_replicas"}
"""The same of autoscaling."""

_KEYS_BELOW: Final = {**_TABLES, "release": RELEASE_KEYS}
KEYS: Final = (
    *_READERS,
    *(f"{table}.{key}" for table, keys in _KEYS_BELOW.items() for key in keys),
)
"""All keys of a deployment."""


# Reading


def read_file(
    text: str, kind: Format, source: str, drafts: list[Found] | None = None
) -> tuple[list[Found], list[str]]:
    """Read the deployments of a file, and every mistake in it; what has one is left out.

    Args:
        text: What the file holds.
        kind: `toml` or `yaml`.
        source: Its name, for messages.
        drafts: Where to put what is left out, as far as it could be read: there may be more to say of it.
    """
    if len(text.encode(errors="replace")) > MAX_DEPLOYMENT_FILE_BYTES:
        return [], [f"{source}: the file has more than {MAX_DEPLOYMENT_FILE_BYTES} bytes"]
    documents, faults = _toml(text) if kind == "toml" else _yaml(text)
    found: list[Found] = []
    told = [fault.told(source) for fault in faults]
    for document, prefix, lines in documents:
        spec, wrongs = read_draft(document)
        told += [
            Fault(prefix + each.key, each.sentence, _line(lines, each.key)).told(source)
            for each in wrongs
        ]
        if spec is not None and not wrongs:
            found.append(Found(spec, source, prefix, lines))
        elif spec is not None and drafts is not None:
            drafts.append(Found(spec, source, prefix, lines))
    if not documents and not told:
        told = [f"{source}: there is no deployment in it; write at least name = … and model = …"]
    if len(documents) > MAX_DEPLOYMENTS_PER_FILE:
        told = [
            f"{source}: {len(documents)} deployments; a file has at most {MAX_DEPLOYMENTS_PER_FILE}"
        ]
    return found, told


def parse(text: str, kind: Format, source: str) -> tuple[DeploymentSpec, ...]:
    """Return the deployments of a file.

    Raises:
        ConfigError: with every mistake of the file, also in `lines`.
    """
    found, told = read_file(text, kind, source)
    told += twice(found)
    if told:
        raise refusal(told)
    return tuple(each.spec for each in found)


def twice(found: Iterable[Found]) -> list[str]:
    """Return the mistakes of names that several deployments have."""
    seen: dict[str, Found] = {}
    told = []
    for each in found:
        first = seen.setdefault(each.spec.name, each)
        if first is not each:
            also = first.source if first.source != each.source else "above"
            told.append(each.fault("name", f"{each.spec.name!r} is there twice, also {also}"))
    return told


def refusal(told: Sequence[str]) -> ConfigError:
    """Return the error of mistakes, each on a line of its own."""
    error = ConfigError("\n".join(told))
    error.lines = tuple(told)
    return error


def spec_of(document: object) -> DeploymentSpec:
    """Return the deployment of a JSON document.

    Raises:
        InvalidRequest: with every mistake.
    """
    spec, faults = read_document(document)
    if spec is None:
        raise InvalidRequest("; ".join(each.told("deployment") for each in faults))
    return spec


def read_document(document: object) -> tuple[DeploymentSpec | None, list[Fault]]:
    """Read one deployment; return None for it if there is any mistake, and the mistakes."""
    spec, faults = read_draft(document)
    return (None if faults else spec), faults


def read_draft(document: object) -> tuple[DeploymentSpec | None, list[Fault]]:
    """Read one deployment; return what can be read of it in spite of its mistakes, None without name and model."""
    if not isinstance(document, dict):
        return None, [Fault("", "a deployment is a table of keys, such as name and model")]
    faults: list[Fault] = []
    said = _table(document, "", _READERS, faults, tables=tuple(_KEYS_BELOW))
    where = _table(document.get("where", {}), "where", _WHERE, faults)
    resources = _table(document.get("resources", {}), "resources", _RESOURCES, faults)
    scaling = _scaling(document, faults)
    release = None
    if "release" in document:
        release = read_release(document["release"], faults, KEYS)
    missing = (key for key in ("name", "model") if key not in document)
    faults += [Fault(key, "this is missing") for key in missing]
    constraints, claim = Constraints(**where), Resources(**resources)
    faults += [Fault("where", each) for each in flaws(constraints, ESTIMATED)]
    faults += [Fault("resources", each) for each in flaws(ANYWHERE, claim)]
    env = said.get("env", ())
    wrong = [flaw for each in env if (flaw := environment_flaw((each,)))]
    faults += [Fault("env", flaw) for flaw in wrong or filter(None, [environment_flaw(env)])]
    on = said.get("on", ())
    replicas = said.setdefault("replicas", usual_replicas(on, scaling))
    if on and replicas > len(on) and "replicas" in document:
        faults.append(
            Fault("replicas", f"{replicas} replicas do not fit on the {len(on)} nodes of on")
        )
    if release is not None and len(said.get("versions", ())) > 1:
        faults.append(Fault("version", "a release leads to one version: name one, or none"))
    if not said.keys() >= {"name", "model"}:
        return None, faults
    spec = DeploymentSpec(
        **said, where=constraints, resources=claim, scaling=scaling, release=release
    )
    return spec, faults


def _scaling(document: Mapping[str, object], faults: list[Fault]) -> Scaling | None:
    if "autoscaling" not in document:
        return None
    table = document["autoscaling"]
    said = _table(table, "autoscaling", _AUTOSCALING, faults, fields=SCALING_FIELDS)
    if isinstance(table, dict) and "max" not in table:
        faults.append(Fault("autoscaling.max", "this is missing: the most replicas there may be"))
        return None
    scaling = Scaling(**said)
    faults += [Fault("autoscaling", each) for each in scaling_flaws(scaling)]
    return scaling


def read_autoscaling(table: object) -> Scaling:
    """Return what the number of replicas follows, of the table `autoscaling`.

    Raises:
        InvalidRequest: with every mistake.
    """
    faults: list[Fault] = []
    scaling = _scaling({"autoscaling": table}, faults)
    if scaling is None or faults:
        raise InvalidRequest("; ".join(each.told("") for each in faults))
    return scaling


def release_plan(table: object) -> Release | None:
    """Return how a new version takes the place of the old one, of the table `release`; None for directly.

    Raises:
        InvalidRequest: with every mistake.
    """
    faults: list[Fault] = []
    release = read_release(table, faults, KEYS)
    if faults:
        raise InvalidRequest("; ".join(each.told("") for each in faults))
    return release


def _table(
    table: object,
    prefix: str,
    readers: Readers,
    faults: list[Fault],
    tables: Sequence[str] = (),
    fields: Mapping[str, str] = _FIELDS,
) -> dict[str, Any]:
    return read_table(table, prefix, readers, faults, known=KEYS, tables=tables, fields=fields)


def usual_replicas(on: Sequence[str], scaling: Scaling | None) -> int:
    """Return the number of replicas, with autoscaling the number to begin with, if none is given."""
    return max(1, len(on) if scaling is None else scaling.min_replicas)


_Read = tuple[list[tuple[object, str, dict[str, int]]], list[Fault]]
"""Documents with what their keys begin with in messages and the lines of those, and mistakes."""


def _toml(text: str) -> _Read:
    import tomllib

    try:
        document = tomllib.loads(text)
    except RecursionError:
        return [], [Fault("", "this is not TOML that can be read: it is nested too deeply")]
    except ValueError as error:  # also of a number of thousands of digits
        return [], [Fault("", f"this is not TOML: {error}"[:300])]
    return _several(document, {}) if document else ([], [])


def _yaml(text: str) -> _Read:
    documents, mistakes = read_yaml(text)
    faults = [Fault("", each.sentence, each.line) for each in mistakes]
    if faults:
        return [], faults
    found: list[tuple[object, str, dict[str, int]]] = []
    for at, document in enumerate(documents, 1):
        lines = {_dotted(place): line for place, line in document.lines.items()}
        pieces, wrongs = _several(document.value, lines)
        if len(documents) > 1:
            pieces = [
                (value, prefix or f"document {at}: ", known) for value, prefix, known in pieces
            ]
        found += pieces
        faults += wrongs
    return found, faults


def _several(document: object, lines: dict[str, int]) -> _Read:
    """Take a document for one deployment, or for a list of them."""
    if not isinstance(document, dict) or SEVERAL not in document:
        return [(document, "", lines)], []
    listed = document[SEVERAL]
    beside = [key for key in document if key != SEVERAL]
    faults = [
        Fault(
            str(key)[:_SHOWN],
            f"this cannot stand beside a list of deployments; move it into one [[{SEVERAL}]]",
        )
        for key in beside
    ]
    if not isinstance(listed, list):
        return [], [
            *faults,
            Fault(SEVERAL, f"this is no list; write [[{SEVERAL}]] above each deployment"),
        ]
    found: list[tuple[object, str, dict[str, int]]] = []
    for at, each in enumerate(listed):
        begin = f"{SEVERAL}[{at}]"
        known = {
            key.removeprefix(begin).lstrip("."): line
            for key, line in lines.items()
            if key.startswith(begin)
        }
        found.append((each, f"{SEVERAL}[{at + 1}].", known))
    return found, faults


def _dotted(place: Sequence[str | int]) -> str:
    """Return a place as keys are written: `deployment[0].where.regions`."""
    text = "".join(f"[{each}]" if isinstance(each, int) else f".{each}" for each in place)
    return text.removeprefix(".")


def _line(lines: Mapping[str, int], key: str) -> int:
    """Return the line of a key, else that of the deployment."""
    return lines.get(key, 0) or lines.get("", 0)


def source_text(files: str, said: str) -> str:
    """Return what a deployment was made from, as its revision keeps it.

    Args:
        files: Digest of the files.
        said: Digest of what its definition says of them.
    """
    return f"{files}-{said}"


def files_of(source: str) -> str:
    """Return the digest of the files that a deployment was made from."""
    return source.partition("-")[0]
