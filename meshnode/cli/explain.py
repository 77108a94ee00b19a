"""`meshnode explain`: where a request would go and why, and old decisions made again."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import typer

from meshnode.cli.arguments import AsJson, AskedMesh, asked_region, asks_mesh
from meshnode.cli.output import plain, print_json, print_table
from meshnode.errors import ConfigError, InvalidRequest
from meshnode.options import parse_labels

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from meshnode.client.routing_results import ExplainedCandidate, Explanation
    from meshnode.routing.decisions import Replayed

_LOST_WITHIN: Final = 80
"""A line of a log that says how many others were lost says it within so many characters."""

_OF_NUMBERS: Final = b"+-.eE0123456789"
"""A number that was cut off may be none; without it the line lacks its end all the same."""

_DIFFERENT: Final = 1
"""Exit code where a decision came out otherwise."""


@asks_mesh
def explain(
    mesh: AskedMesh,
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="Public name of the model.")
    ] = None,
    size: Annotated[
        int, typer.Option(min=1, metavar="ROWS", help="Rows of the request's first input.")
    ] = 1,
    size_bytes: Annotated[
        int, typer.Option("--bytes", min=0, metavar="N", help="Size of all its inputs.")
    ] = 0,
    tokens: Annotated[
        int, typer.Option(min=0, metavar="N", help="Tokens that it may write at most.")
    ] = 0,
    version: Annotated[
        int | None,
        typer.Option(min=1, help="A version.", show_default="the newest that is ready"),
    ] = None,
    region: Annotated[
        str | None, typer.Option(help="Where it must run; `REGION;prefer`: where it had better.")
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="A label that its node must have; repeatable."),
    ] = None,
    session: Annotated[str, typer.Option(metavar="WORD", help="The word of its session.")] = "",
    decisions: Annotated[
        bool,
        typer.Option(
            "--decisions", help="Print the last decisions of the gateway instead, to be replayed."
        ),
    ] = False,
    replay: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Make the decisions of this log again (- for stdin), without a mesh; MODEL's only, if given.",
            show_default=False,
        ),
    ] = None,
    json: AsJson = False,
) -> None:
    """Show where a request for MODEL would go: each replica with its terms, its odds, and why not.

    With --replay, decisions of a log are made again, from what is in the log alone.
    """
    if replay is not None:
        _replay(replay, model, as_json=json)
        return
    with mesh.client() as client:
        if decisions:
            _print_decisions(client.decisions(), model, as_json=json)
            return
        if model is None:
            raise ConfigError("name a model to explain, or give --decisions or --replay FILE")
        found = client.explain(
            model,
            version=version,
            rows=size,
            size_bytes=size_bytes,
            tokens=tokens,
            region=asked_region("--region", region),
            labels=dict(parse_labels("--label", label or ())),
            session=session,
        )
    if json:
        print_json(msgspec.to_builtins(found))
    else:
        _tell(found)


# A request.

_COLUMNS: Final = (
    "NODE", "REGION", "ODDS", "EXPECTED", "RTT", "WAIT", "RUN", "RHO", "AGE", "ERRORS", "MORE", "WHY NOT",
)  # fmt: skip


def _tell(found: Explanation) -> None:
    version = "" if found.version is None else f" version {found.version}"
    reason = f": {found.reason}" if found.reason else ": nobody can take it"
    about = " (odds counted in draws)" if found.estimated else ""
    typer.echo(plain(f"{found.model}{version}, asked at {found.gateway}{reason}{about}"))
    rows: list[Sequence[object]] = [_row(each) for each in found.candidates]
    rows += [(each.name, *[""] * 10, each.reason) for each in found.excluded]
    print_table(_COLUMNS, rows, empty="no node has a replica of it", droppable=("AGE", "ERRORS"))


def _row(each: ExplainedCandidate) -> Sequence[object]:
    terms = each.terms
    more = [
        f"{sign}{value:{form}} {what}"
        for value, usual, sign, form, what in (
            (terms.cold_ms, 0.0, "+", ".0f", "ms until loaded"),
            (terms.ramp, 1.0, "x", ".2f", "just begun"),
            (terms.saved_ms, 0.0, "-", ".3g", "ms saved"),
        )
        if value != usual
    ]
    return (
        each.name,
        each.region,
        f"{each.odds:.1%}" if each.odds else "-",
        f"{each.expected_ms:.3g} ms",
        f"{terms.rtt_ms:.3g} ms",
        f"{terms.wait_ms:.3g} ms",
        f"{terms.service_ms:.3g} ms",
        f"{terms.rho:.2f}",
        "never" if each.report_age_s is None else f"{each.report_age_s:.1f} s",
        f"{terms.p_error:.0%}" if terms.p_error else "-",
        "; ".join(more),
        each.dropped or each.later or ("" if each.odds else "others are sooner done"),
    )


# The log.


def _print_decisions(
    decisions: Iterable[dict[str, Any]], model: str | None, *, as_json: bool
) -> None:
    wanted = [each for each in decisions if model in (None, each.get("model"))]
    if as_json:
        print_json(wanted)
        return
    for each in wanted:
        print_json(each)


def _replay(file: str, model: str | None, *, as_json: bool) -> None:
    from meshnode.routing.decisions import read, replay

    results: list[Replayed] = []
    cut: list[int] = []
    for number, line in enumerate(_lines(file), 1):
        if not line.strip() or b'"lost":' in line[:_LOST_WITHIN]:
            continue
        try:
            decision = read(line)
        except InvalidRequest as error:
            if _is_cut(line):
                cut.append(number)
                continue
            raise ConfigError(f"{file}, line {number}: {error}") from None
        if model in (None, decision.model):
            results.append(replay(decision))
    if as_json:
        print_json([_document(each) for each in results])
    else:
        for each in results:
            if not each.is_same:
                typer.echo(plain(_difference(each)))
        same = sum(each.is_same for each in results)
        typer.echo(f"{same} of {len(results)} decisions came out exactly as they did")
    for number in cut:
        typer.echo(f"line {number} is incomplete and was left out: its end is missing", err=True)
    if not all(each.is_same for each in results):
        raise typer.Exit(_DIFFERENT)


def _is_cut(line: bytes) -> bool:
    """Whether a line lacks its end, as the last one of a daemon that was killed; a later one begins a new line."""
    try:
        msgspec.json.decode(line.rstrip(_OF_NUMBERS))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return line.startswith(b"{") and "truncated" in str(error)
    return False


def _lines(file: str) -> list[bytes]:
    """Return the lines of a log; the last one is empty where the log ends with a complete line."""
    if file == "-":
        return sys.stdin.buffer.read().split(b"\n")
    try:
        return Path(file).expanduser().read_bytes().split(b"\n")
    except OSError as error:
        raise ConfigError(f"--replay: {file} cannot be read ({error})") from error


def _document(each: Replayed) -> dict[str, Any]:
    before = each.decision
    return {
        "number": before.number,
        "time": before.time,
        "model": before.model,
        "node": before.node,
        "reason": before.reason,
        "expected_ms": before.score_ms,
        "same": each.is_same,
        "now": {"node": each.node, "reason": each.reason, "expected_ms": each.score_ms},
        "odd": each.odd,
    }


def _difference(each: Replayed) -> str:
    before = each.decision
    names = {seen.node: seen.name for seen in before.seen}
    if each.odd:
        return f"decision {before.number} for {before.model}: {each.odd}"

    def told(node: str | None, reason: str, score_ms: float) -> str:
        return (
            "nobody" if node is None else f"{names.get(node, node)} ({reason}, {score_ms:.6g} ms)"
        )

    return (
        f"decision {before.number} for {before.model}: it was "
        f"{told(before.node, before.reason, before.score_ms)}, and is "
        f"{told(each.node, each.reason, each.score_ms)} now"
    )
