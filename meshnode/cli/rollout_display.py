"""How a release stands, drawn for a terminal or printed as text."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Self

import typer

from meshnode.cli.output import plain, terminal

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from rich.console import RenderableType
    from rich.live import Live
    from rich.text import Text

    from meshnode.client.feedback import Disagreements
    from meshnode.client.rollout_results import (
        RolloutArm,
        RolloutDifference,
        RolloutGate,
        RolloutInfo,
    )

_STYLES: Final = {
    "running": "green",
    "keeping": "green",
    "preparing": "yellow",
    "paused": "yellow",
    "inconclusive": "yellow",
    "done": "bold green",
    "promoted": "bold green",
    "pass": "green",
    "rolled_back": "bold red",
    "fail": "bold red",
}
_WORDS: Final = {"rolled_back": "rolled back", "ab": "A/B", "blue_green": "blue/green"}
_SHOWN_DECISIONS: Final = 6
_REFRESHES_PER_S: Final = 4


class RolloutDisplay:
    """Shows on stdout how a release goes on: a live view on a terminal, else a line for every change."""

    def __init__(self) -> None:
        self._console = terminal()
        self._live: Live | None = None
        self._said = ""
        self._shown: RolloutInfo | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the terminal back, with what was shown last."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def show(self, info: RolloutInfo) -> None:
        """Show the newest state."""
        if not self._console.is_terminal:
            line = change_line(info)
            if line != self._said:
                typer.echo(line)
            self._said = line
            return
        self._shown = info
        if self._live is None:
            from rich.live import Live

            self._live = Live(
                get_renderable=self._drawn,
                console=self._console,
                refresh_per_second=_REFRESHES_PER_S,
                vertical_overflow="crop",
            )
            self._live.start()
        self._live.refresh()

    def _drawn(self) -> RenderableType:
        """Return the picture as of now: how long the step lasts goes on between two looks."""
        return "" if self._shown is None else drawn(self._shown, datetime.now(UTC))


def print_rollout(info: RolloutInfo) -> None:
    """Print how a release stands."""
    console = terminal()
    picture = drawn(info, datetime.now(UTC))
    if console.is_terminal:
        console.print(picture)
        return
    with console.capture() as captured:
        console.print(picture)
    for line in captured.get().splitlines():  # without the spaces that fill the last column
        typer.echo(line.rstrip())


def print_disagreements(found: Disagreements, examples: int) -> None:
    """Print where a new version answers otherwise, with so many examples."""
    share = f" ({_percent(found.disagreed / found.compared)})" if found.compared else ""
    of_version = f", version {found.version}" if found.version else ""
    typer.echo(
        f"{plain(found.model)}{of_version}: {found.disagreed} of {found.compared} answers disagree{share}"
    )
    if found.no_reference:
        typer.echo(
            f"  {found.no_reference} had nothing to be compared with; the last one: {plain(found.reason)}"
        )
    for cluster in found.clusters:
        typer.echo(f"  {plain(cluster.get('text', ''))}")
    for example in found.examples[:examples]:
        typer.echo("")
        for key, value in example.items():
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            typer.echo(f"  {plain(key)}: {plain(text)}")
    if found.silent:
        typer.echo(
            f"some may be missing: {plain(', '.join(found.silent))} did not answer", err=True
        )


def change_line(info: RolloutInfo) -> str:
    """Return a release in one line, the same as long as nothing is decided."""
    counts = f"step {info.step} of {len(info.steps)}, " if 0 < info.step <= len(info.steps) else ""
    verdict = f" [{info.verdict}]" if info.verdict else ""
    return plain(
        f"{info.name}: {_word(info.outcome or info.phase)}, {counts}{_who(info)} to version {info.candidate}: "
        f"{info.reason}{verdict}"
    )


def drawn(info: RolloutInfo, now: datetime) -> RenderableType:
    """Return a picture of a release: its steps, both versions, its gates and what was decided.

    Args:
        info: The release.
        now: The present.
    """
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [_title(info), _bar(info), Text(plain(_course(info, now)))]
    parts += [Text(plain(f"why: {info.reason}"))] if info.reason else []
    parts += [Text(plain(f"room: {info.room}"), style="yellow")] if info.room else []
    parts += [Text(plain(f"unlike: {info.unlike}"), style="yellow")] if info.unlike else []
    if info.arms:
        parts += [Text(""), _arms(info)]
    if info.gates:
        parts += [Text(""), _gates(info)]
    if info.strategy == "ab" and info.significance:
        parts += [Text(""), _differences(info)]
    if info.decisions:
        parts += [Text(""), *_decisions(info)]
    if info.verbs:
        parts += [
            Text(""),
            Text(plain(f"meshnode rollout {'|'.join(info.verbs)} {info.name}"), style="dim"),
        ]
    return Group(*parts)


def _title(info: RolloutInfo) -> Text:
    from rich.text import Text

    state = info.outcome or info.phase
    strategy = _WORDS.get(info.strategy, info.strategy)
    text = Text(plain(f"{info.name}: {strategy}, version {info.baseline} → {info.candidate}, "))
    return text.append(plain(_word(state)), style=_STYLES.get(state, ""))


def _bar(info: RolloutInfo) -> Text:
    """Return the steps in a row: those that are past, the one that lasts, and those to come."""
    from rich.text import Text

    bar = Text()
    for at, step in enumerate(info.steps, 1):
        share = " or ".join(info.only) if info.only else _percent(step.share)
        name = share + (f"+{_percent(step.mirror)} mirrored" if step.mirror else "")
        _add(bar, name + (" wait" if step.wait else ""), at, info)
    _add(bar, "all", len(info.steps) + 1, info)
    return bar


def _add(bar: Text, name: str, at: int, info: RolloutInfo) -> None:
    is_over = info.outcome is not None
    if at < info.step or info.outcome == "promoted":
        mark, style = "■", "green"
    elif at == info.step and info.outcome == "rolled_back":
        mark, style = "✗", "bold red"
    elif at == info.step and not is_over:
        mark, style = "▶", "bold yellow" if info.phase == "paused" else "bold"
    else:
        mark, style = "□", "dim"
    if bar:
        bar.append(" ─ ", style="dim")
    bar.append(plain(f"{mark} {name}"), style=style)


def _course(info: RolloutInfo, now: datetime) -> str:
    """Return where a release is and since when, in one line."""
    parts = []
    if info.outcome is None:
        parts.append(f"{_who(info)} to version {info.candidate}")
        lasts = _since(info.since, now)
        if 0 < info.step <= len(info.steps) and info.phase == "running":
            parts.append(
                f"step {info.step} of {len(info.steps)} for {lasts}, holds {info.steps[info.step - 1].hold_s:g} s"
            )
        else:
            parts.append(f"{_word(info.phase)} for {lasts}")
    else:
        parts.append(f"version {info.serving} answers all requests")
    parts.append(
        f"ready: {info.ready.baseline} of version {info.baseline}, {info.ready.candidate} of {info.ready.wanted} of "
        f"version {info.candidate}"
    )
    if info.steward:
        parts.append(f"steward {info.steward}, epoch {info.epoch}")
    return "; ".join(parts)


def _who(info: RolloutInfo) -> str:
    """Return which requests the new version gets."""
    if info.only and 0 < info.share < 1:
        return f"requests with {info.split_by.removeprefix('header:')}: {' or '.join(info.only)} go"
    return f"{_percent(info.share)} of the requests go"


def _arms(info: RolloutInfo) -> RenderableType:
    metrics = sorted({name for arm in info.arms for name in arm.metrics})
    columns = ("VERSION", "DEVICE", "ANSWERS", "ERRORS", "P50", "P99", "AGREEMENT", *metrics)
    order = {info.baseline: 0, info.candidate: 1}
    arms = sorted(info.arms, key=lambda arm: (arm.device, order.get(arm.version, 2)))
    return _table(columns, [_arm(arm, metrics) for arm in arms])


def _arm(arm: RolloutArm, metrics: Sequence[str]) -> list[str]:
    def amount(name: str) -> str:
        found = arm.metrics.get(name)
        return f"{found.mean:.4g} ({found.number})" if found is not None else ""

    return [
        str(arm.version),
        arm.device or "-",
        str(arm.requests),
        f"{arm.errors} ({_percent(arm.errors / arm.requests)})" if arm.requests else "0",
        _ms(arm.p50_ms),
        _ms(arm.p99_ms),
        f"{_percent(arm.agreed / arm.compared)} of {arm.compared}" if arm.compared else "",
        *map(amount, metrics),
    ]


def _gates(info: RolloutInfo) -> RenderableType:
    columns = (
        "GATE",
        "LIMIT",
        "VERDICT",
        f"VERSION {info.baseline}",
        f"VERSION {info.candidate}",
        "WHY",
    )
    return _table(columns, [_gate(gate) for gate in info.gates])


def _gate(gate: RolloutGate) -> list[str]:
    where = f" on {gate.device}" if gate.device else ""
    figures = ("" if each is None else f"{each:.4g}" for each in (gate.baseline, gate.candidate))
    return [gate.metric + where, f"{gate.limit:g}", gate.verdict, *figures, gate.reason]


def _differences(info: RolloutInfo) -> RenderableType:
    columns = (
        "DIFFERENCE",
        f"VERSION {info.baseline}",
        f"VERSION {info.candidate}",
        "BY",
        "INTERVAL",
        "CHANCE",
        "SAYS",
    )
    return _table(columns, [_difference(each) for each in info.significance])


def _difference(each: RolloutDifference) -> list[str]:
    def mean(value: float | None, count: int) -> str:
        return "" if value is None else f"{value:.4g} ({count})"

    row = [
        each.metric,
        mean(each.baseline, each.baseline_count),
        mean(each.candidate, each.candidate_count),
    ]
    if each.difference is None or each.low is None or each.high is None:
        return [*row, "", "", "", "too few figures"]
    sign = "x" if each.metric == "latency" else ""
    says = "they differ" if each.is_significant else "no more than chance"
    interval = f"{each.low:.4g} to {each.high:.4g}"
    return [*row, f"{sign}{each.difference:.4g}", interval, f"{each.chance:.2g}", says]


def _decisions(info: RolloutInfo) -> list[RenderableType]:
    from rich.text import Text

    lines: list[RenderableType] = []
    for each in info.decisions[-_SHOWN_DECISIONS:]:
        line = Text(f"{_clock(each.at)} ", style="dim")
        kind = each.kind.rpartition(".")[2]
        line.append(plain(_word(kind)), style=_STYLES.get(kind, "bold")).append(
            plain(f" {each.reason}")
        )
        lines.append(line)
    return lines


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    kept = [at for at in range(len(columns)) if any(row[at] for row in rows)]
    for at in kept:
        table.add_column(Text(plain(columns[at])), overflow="fold")
    for row in rows:
        table.add_row(*(Text(plain(row[at]) or "-", style=_STYLES.get(row[at], "")) for at in kept))
    return table


def _word(word: str) -> str:
    return _WORDS.get(word, word)


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"


def _ms(run_ms: float | None) -> str:
    return "" if run_ms is None else f"{run_ms:.3g} ms"


def _clock(at: str) -> str:
    """Return the time of day of an RFC 3339 text, as it stands there."""
    return at.partition("T")[2][:8] or at


def _since(at: str, now: datetime) -> str:
    try:
        began = datetime.fromisoformat(at)
    except ValueError:
        return "?"
    if began.tzinfo is None:
        return "?"
    seconds = max(0, int((now - began).total_seconds()))
    hours, rest = divmod(seconds, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"
