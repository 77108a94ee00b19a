"""The table `release` of a deployment file: how a new version takes the place of the old one.

    [release]
    strategy = "canary"
    steps = [5, 20, {share = 50, hold_s = 600, wait = true}]

    [release.gates]
    errors = 0.01

Shares of requests are percents here, and 0 to 1 in a `Release`. The table is a plan: which versions it leads from
and to is known when the deployment is written, and both are 0 until then.
"""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Any, Final, get_args
from urllib.parse import urlsplit

from msgspec import structs

from meshnode.deployment_tables import Fault, read_table
from meshnode.deployment_values import Wrong, amount, flag, items, number, text, wrong
from meshnode.errors import MeshError
from meshnode.limits import (
    MAX_GATE_NAME_LENGTH,
    MAX_RELEASE_GATES,
    MAX_RELEASE_S,
    MAX_RELEASE_STEPS,
    MAX_RELEASE_URL_LENGTH,
)
from meshnode.models.manifest import check_model_name
from meshnode.state.release import (
    BUILT_IN_METRICS,
    STRATEGIES,
    Comparison,
    Gate,
    Release,
    Step,
    release_flaws,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meshnode.deployment_tables import Readers

DIRECT: Final = "direct"
"""The strategy of a deployment without a release: the new version replaces the old one as it becomes ready."""

_PREFIX: Final = "release"
_GATES: Final = "release.gates"
_PERCENT_DIGITS: Final = 6  # decimals of a percent that count
_HEADER: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_LIKELY_SAME: Final = 0.75  # so alike is the name of a gate only by mistake

_USUAL_SHARES: Final = (0.05, 0.2, 0.5)
_CANARY_HOLD_S: Final = 60.0
_SHADOW_S: Final = 600.0
_TEST_S: Final = 86_400.0
_TEST_SHARE: Final = 0.5
_USUAL_GATES: Final = (Gate("errors", 0.01), Gate("latency_p50", 1.25), Gate("latency_p99", 1.5))
_USUAL_AGREEMENT: Final = Gate("agreement", 0.99)


def _percent(raw: object) -> float:
    """Return a percent as a share, 0 to 1."""
    return round(amount(0, 100)(raw) / 100, _PERCENT_DIGITS + 2)


def _choice(*known: str) -> Any:
    def read(raw: object) -> str:
        expected = f"one of {', '.join(known)}"
        if not isinstance(raw, str) or raw not in known:
            near = (
                difflib.get_close_matches(raw.replace("-", "_"), known, 1)
                if isinstance(raw, str)
                else []
            )
            raise Wrong(f"{wrong(raw, expected)}{f'; did you mean {near[0]!r}?' if near else ''}")
        return raw

    return read


def _split(raw: object) -> str:
    expected = '"key", "session" or "header:NAME"'
    found = text(raw, expected, MAX_GATE_NAME_LENGTH, 1)
    header = found.removeprefix("header:")
    if found not in ("key", "session") and (header == found or not _HEADER.fullmatch(header)):
        raise wrong(raw, expected)
    return found if header == found else f"header:{header.lower()}"


def _values(raw: object) -> tuple[str, ...]:
    found = items(raw, 'a list of the header\'s values, such as ["beta"]', _value)
    if not 1 <= len(found) <= MAX_RELEASE_GATES:
        raise Wrong(f"these are {len(found)} values; it takes 1 to {MAX_RELEASE_GATES}")
    return found


def _value(raw: object) -> str:
    return text(raw, "a header's value", MAX_GATE_NAME_LENGTH, 1)


def _against(raw: object) -> str:
    expected = '"labels", "deployment:NAME", "request:NAME" or an http(s) URL'
    found = text(raw, expected, MAX_RELEASE_URL_LENGTH, 1)
    kind, _, name = found.partition(":")
    if kind == "deployment":
        try:
            check_model_name(name)
        except MeshError as error:
            raise Wrong(str(error)) from None
        return found
    if found == "labels" or (kind == "request" and _HEADER.fullmatch(name)):
        return found
    if kind in ("http", "https"):
        try:
            if urlsplit(found).hostname and found.isascii() and found.isprintable():
                return found
        except ValueError:
            pass
    raise wrong(raw, expected)


_seconds = amount(0, MAX_RELEASE_S)
_USUAL: Final[Readers] = {
    "against": _against,
    "compare": _choice(*get_args(Comparison)),
    "tolerance": amount(0, 1e9),
    "min_requests": number(1, 1_000_000),
    "max_wait_s": _seconds,
    "keep_s": _seconds,
    "confidence": amount(0.5, 0.9999),
}
"""The keys of all strategies that are fields of a `Release`."""

_READERS: Final[Readers] = {
    "strategy": _choice(*STRATEGIES, DIRECT),
    "steps": lambda raw: raw,  # read by `_steps`, which tells all of its mistakes
    "hold_s": _seconds,
    "auto": flag,
    "share": _percent,
    "mirror": _percent,
    "duration_s": _seconds,
    "split_by": _split,
    "only": _values,
    **_USUAL,
    "gates": lambda raw: raw,  # read by `_gates`
}
_STEP: Final[Readers] = {"share": _percent, "hold_s": _seconds, "wait": flag, "mirror": _percent}
_GATE: Final[Readers] = {"limit": amount(0, 1e9), "higher_is_better": flag}
_OWN_KEYS: Final[dict[str, tuple[str, ...]]] = {
    "canary": ("steps", "hold_s", "split_by"),
    "blue_green": ("hold_s", "mirror", "auto"),
    "shadow": ("mirror", "duration_s", "auto"),
    "ab": ("share", "duration_s", "split_by", "only", "auto"),
}
"""The keys that not all strategies have."""

RELEASE_KEYS: Final = tuple(_READERS)
"""All keys of the table."""


def read_release(table: object, faults: list[Fault], known: Sequence[str]) -> Release | None:
    """Return what the table says, its versions 0, and note what is wrong with it; None where it asks for no steps.

    Where something is wrong it is what could be read: each key is checked by itself, whatever is wrong with others.

    Args:
        table: What stands in the file.
        faults: Where mistakes are noted.
        known: All keys of a deployment, for hints.
    """
    said = read_table(table, _PREFIX, _READERS, faults, known=known)
    if not isinstance(table, dict):
        return None
    if "strategy" not in table:
        faults.append(Fault("release.strategy", f"this is missing; one of {', '.join(STRATEGIES)}"))
    strategy = said.get("strategy")
    if strategy == DIRECT:
        faults += [Fault(f"{_PREFIX}.{key}", "a new version that replaces the old one directly takes no other key than "
                         "strategy") for key in said if key != "strategy"]  # fmt: skip
        return None
    if strategy is not None:
        _misplaced(strategy, said, faults)
    before = len(faults)
    listed: tuple[Step, ...] = ()
    if "steps" in said:
        listed = _listed(said["steps"], said.get("hold_s", _CANARY_HOLD_S), faults)
    are_steps_wrong = len(faults) > before
    steps = _steps(strategy, said, listed)
    gates = _gates(said["gates"], faults) if "gates" in said else _usual_gates(steps)
    more = {key: said[key] for key in (*_USUAL, "split_by", "only") if key in said}
    release = Release(strategy or "canary", 0, 0, steps, gates, **more)
    # What could not be read is taken for what goes with the rest.
    checked = structs.replace(release, baseline=1, candidate=2)
    unread = {key for key in _READERS if key in table and key not in said}
    if strategy is None or are_steps_wrong or "mirror" in unread:
        mirrored = structs.replace(steps[-1], mirror=1.0)
        checked = structs.replace(checked, steps=(*steps[:-1], mirrored))
    if "split_by" in unread:
        checked = structs.replace(checked, split_by="header:any")
    if "against" in unread:
        checked = structs.replace(checked, against="labels")
    _check_compared(checked, said, faults)
    faults += [Fault(_PREFIX, flaw) for flaw in release_flaws(checked)]
    return release


def _misplaced(strategy: str, said: Mapping[str, Any], faults: list[Fault]) -> None:
    """Note keys that are another strategy's."""
    for key in said:
        owners = [name for name, keys in _OWN_KEYS.items() if key in keys]
        if owners and strategy not in owners:
            own = ", ".join(_OWN_KEYS[strategy])
            faults.append(
                Fault(
                    f"{_PREFIX}.{key}",
                    f"this goes with the strategy {' or '.join(owners)}; {strategy} has {own}",
                )
            )


def _steps(
    strategy: str | None, said: Mapping[str, Any], listed: tuple[Step, ...]
) -> tuple[Step, ...]:
    """Return the steps that a strategy and its keys make; those of a canary where the strategy is not known."""
    wait = not said.get("auto", False)
    if strategy == "blue_green":
        return (Step(0.0, said.get("mirror", 0.0), said.get("hold_s", 0.0), wait),)
    if strategy == "shadow":
        return (Step(0.0, said.get("mirror", 1.0), said.get("duration_s", _SHADOW_S), wait),)
    if strategy == "ab":
        return (Step(said.get("share", _TEST_SHARE), 0.0, said.get("duration_s", _TEST_S), wait),)
    hold_s = said.get("hold_s", _CANARY_HOLD_S)
    return listed or tuple(Step(share, 0.0, hold_s) for share in _USUAL_SHARES)


def _listed(raw: object, hold_s: float, faults: list[Fault]) -> tuple[Step, ...]:
    """Return the steps of a list of percents and tables."""
    if not isinstance(raw, list) or not 1 <= len(raw) <= MAX_RELEASE_STEPS:
        expected = f"a list of 1 to {MAX_RELEASE_STEPS} percents, such as [5, 20, 50]"
        mistake = (
            Wrong(f"these are {len(raw)} steps, not {expected}")
            if isinstance(raw, list)
            else wrong(raw, expected)
        )
        faults.append(Fault("release.steps", str(mistake)))
        return ()
    steps: list[Step] = []
    for at, each in enumerate(raw, 1):
        wrongs: list[Fault] = []
        table = each if isinstance(each, dict) else {"share": each}
        if "share" not in table:
            wrongs.append(Fault("release.steps.share", "this is missing"))
        known = [f"release.steps.{key}" for key in _STEP]
        found = read_table(table, "release.steps", _STEP, wrongs, known=known)
        for fault in wrongs:
            key = fault.key.removeprefix("release.steps").lstrip(".")
            told = f"{key}: {fault.sentence}" if isinstance(each, dict) else fault.sentence
            faults.append(Fault("release.steps", f"step {at}: {told}"))
        if not wrongs:
            steps.append(Step(**{"hold_s": hold_s, **found}))
    if len(steps) == len(raw) and steps[-1].share < 0.01 and not steps[-1].mirror:
        told = "the last step is less than 1 percent of the requests; write shares as percents, 0 to 100"
        faults.append(Fault("release.steps", told))
    return tuple(steps)


def _usual_gates(steps: Sequence[Step]) -> tuple[Gate, ...]:
    compares = any(step.mirror for step in steps)
    return (*_USUAL_GATES, _USUAL_AGREEMENT) if compares else _USUAL_GATES


def _gates(table: object, faults: list[Fault]) -> tuple[Gate, ...]:
    """Return the gates of their table, in its order."""
    if not isinstance(table, dict):
        faults.append(
            Fault(
                _GATES,
                "this is no table; write [release.gates], and one METRIC = LIMIT per line below it",
            )
        )
        return ()
    if len(table) > MAX_RELEASE_GATES:
        faults.append(Fault(_GATES, f"there are {len(table)} gates; at most {MAX_RELEASE_GATES}"))
        return ()
    gates: list[Gate] = []
    for metric, raw in ((str(metric), raw) for metric, raw in table.items()):
        place = f"{_GATES}.{metric}"[:80]
        flaw = _name_flaw(metric)
        if flaw:
            faults.append(Fault(place, flaw))
            continue
        wrongs: list[Fault] = []
        given = raw if isinstance(raw, dict) else {"limit": raw}
        found = read_table(given, place, _GATE, wrongs, known=[f"{place}.{key}" for key in _GATE])
        if "limit" not in given:
            wrongs.append(Fault(f"{place}.limit", "this is missing"))
        if "higher_is_better" in given and metric in BUILT_IN_METRICS:
            wrongs.append(
                Fault(f"{place}.higher_is_better", "this goes with metrics of people's feedback")
            )
        if not isinstance(raw, dict):
            wrongs = [Fault(place, each.sentence) for each in wrongs]
        faults += wrongs
        if not wrongs:
            gates.append(Gate(metric, **found))
    return tuple(gates)


def _name_flaw(metric: str) -> str:
    """Return what is wrong with the name of a gate's metric; one that is not the mesh's own is people's feedback."""
    if metric in BUILT_IN_METRICS:
        return ""
    try:
        text(metric, "the name of a metric", MAX_GATE_NAME_LENGTH, 1)
    except Wrong as mistake:
        return str(mistake)
    cutoff = 0.0 if metric.lower().startswith("latency") else _LIKELY_SAME
    near = difflib.get_close_matches(metric.lower(), BUILT_IN_METRICS, 1, cutoff)
    if not near:
        return ""
    return f"this is too like a metric of the mesh's own to be one of people's feedback; did you mean {near[0]!r}?"


def _check_compared(release: Release, said: Mapping[str, Any], faults: list[Fault]) -> None:
    """Note how answers are to be compared where none are."""
    if release.against.startswith(("labels", "request:")) or any(
        step.mirror for step in release.steps
    ):
        return
    faults += [
        Fault(
            f"{_PREFIX}.{key}",
            'nothing is compared without a step with mirror, or without against = "labels" or "request:NAME"',
        )
        for key in ("against", "compare", "tolerance")
        if key in said
    ]


def plan_of(release: Release) -> Release:
    """Return the plan of a release, as its table has it: without its versions, and when it was asked for."""
    return structs.replace(release, baseline=0, candidate=0, begun_ms=0)


# Writing


def release_document(release: Release | None) -> dict[str, Any]:
    """Return a release as the table has it; what has its default is left out."""
    if release is None:
        return {}
    usual = read_release({"strategy": release.strategy}, [], ())
    assert usual is not None
    said: dict[str, Any] = {"strategy": release.strategy, **_steps_document(release, usual)}
    fields = ("split_by", "only", *_USUAL)
    for name in fields:
        value = getattr(release, name)
        if value != getattr(usual, name):
            said[name] = [*value] if isinstance(value, tuple) else value
    if release.gates != _usual_gates(release.steps):
        said["gates"] = {gate.metric: _gate_document(gate) for gate in release.gates}
    return said


def _steps_document(release: Release, usual: Release) -> dict[str, Any]:
    first, before = release.steps[0], usual.steps[0]
    if release.strategy != "canary":
        hold = "hold_s" if release.strategy == "blue_green" else "duration_s"
        differing: dict[str, tuple[Any, Any]] = {
            "share": (_as_percent(first.share), _as_percent(before.share)),
            "mirror": (_as_percent(first.mirror), _as_percent(before.mirror)),
            hold: (first.hold_s, before.hold_s),
            "auto": (not first.wait, not before.wait),
        }
        return {key: value for key, (value, default) in differing.items() if value != default}
    holds = {step.hold_s for step in release.steps}
    hold_s = holds.pop() if len(holds) == 1 else before.hold_s
    said: dict[str, Any] = {} if hold_s == before.hold_s else {"hold_s": hold_s}
    steps = [_step_document(step, hold_s) for step in release.steps]
    usual_steps = [_as_percent(share) for share in _USUAL_SHARES]
    return said if steps == usual_steps else {"steps": steps, **said}


def _step_document(step: Step, hold_s: float) -> Any:
    more: dict[str, Any] = {
        "mirror": _as_percent(step.mirror) or None,
        "hold_s": None if step.hold_s == hold_s else step.hold_s,
        "wait": step.wait or None,
    }
    further = {key: value for key, value in more.items() if value is not None}
    share = _as_percent(step.share)
    return {"share": share, **further} if further else share


def _gate_document(gate: Gate) -> Any:
    if gate.higher_is_better:
        return gate.limit
    return {"limit": gate.limit, "higher_is_better": False}


def _as_percent(share: float) -> float:
    """Return a share as it is written in a file; a whole number where it is one."""
    percent = round(share * 100, _PERCENT_DIGITS)
    return int(percent) if percent == int(percent) else percent
