"""`meshnode rollout`: how the release of a deployment stands, and what to do with it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import typer

from meshnode.cli.arguments import AsJson, AskedMesh, asks_mesh, unknown_model
from meshnode.cli.output import plain, print_json
from meshnode.cli.rollout_display import RolloutDisplay, print_disagreements, print_rollout
from meshnode.errors import ConfigError, InvalidRequest, ModelNotFound
from meshnode.options import parse_duration

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.client.mesh import MeshClient
    from meshnode.client.rollout_results import RolloutInfo
    from meshnode.state.release import Verb

app = typer.Typer(
    name="rollout",
    help="Releases: how a new version takes the place of the old one.",
    no_args_is_help=True,
)

ANSWERED_WITHIN_S = 3.0
"""Seconds for which an order's outcome is waited for: stewards look once a second, and at once where an order comes."""

_LOOK_S: Final = 0.1

_NOT_PROMOTED: Final = 1
"""Exit code of `--wait` where the release was rolled back."""

Name = Annotated[str, typer.Argument(metavar="NAME", help="Public name of the deployment.")]
Watch = Annotated[
    bool,
    typer.Option(
        "--watch", help="Follow it live until it has ended; Ctrl-C stops watching, not it."
    ),
]
Wait = Annotated[
    bool,
    typer.Option(
        "--wait", help="Wait until it has ended; the exit code is 0 if promoted, 1 if rolled back."
    ),
]
Timeout = Annotated[
    str | None,
    typer.Option(
        metavar="DURATION", help="With --watch or --wait: stop after so long.", show_default="never"
    ),
]
Reason = Annotated[str, typer.Option(metavar="TEXT", help="Why, for others.", show_default=False)]


@app.command()
@asks_mesh
def status(
    mesh: AskedMesh,
    name: Name,
    watch: Watch = False,
    wait: Wait = False,
    timeout: Timeout = None,
    json: AsJson = False,
) -> None:
    """Show how a release stands: its step, both versions on each class of devices, its gates, what was decided."""
    wait_s = _wait_s(timeout, watch=watch, wait=wait)
    with mesh.client() as client:
        if watch or wait:
            _follow(client, name, wait_s, watch=watch, wait=wait, json=json)
            return
        found = _known(client, name, lambda: client.rollout(name))
    _print(found, json=json)


@app.command()
@asks_mesh
def promote(
    mesh: AskedMesh,
    name: Name,
    reason: Reason = "",
    watch: Watch = False,
    wait: Wait = False,
    timeout: Timeout = None,
    json: AsJson = False,
) -> None:
    """Go on to the next step at once, whatever this one's time and gates; after the last one to the new version."""
    _order(mesh, name, "promote", reason, timeout, watch=watch, wait=wait, json=json)


@app.command()
@asks_mesh
def pause(mesh: AskedMesh, name: Name, reason: Reason = "", json: AsJson = False) -> None:
    """Let a release stand where it is, with its share; a gate that fails still rolls it back."""
    _order(mesh, name, "pause", reason, None, json=json)


@app.command()
@asks_mesh
def resume(
    mesh: AskedMesh,
    name: Name,
    reason: Reason = "",
    watch: Watch = False,
    wait: Wait = False,
    timeout: Timeout = None,
    json: AsJson = False,
) -> None:
    """Let a release go on that is paused; its step begins its time anew."""
    _order(mesh, name, "resume", reason, timeout, watch=watch, wait=wait, json=json)


@app.command()
@asks_mesh
def abort(mesh: AskedMesh, name: Name, reason: Reason = "", json: AsJson = False) -> None:
    """Go back to the old version at once, wherever the release stands."""
    _order(mesh, name, "abort", reason, None, json=json)


@app.command()
@asks_mesh
def undo(mesh: AskedMesh, name: Name, reason: Reason = "", json: AsJson = False) -> None:
    """Go back to the old version at once, also after the new one has taken over and is being kept an eye on."""
    _order(mesh, name, "undo", reason, None, json=json)


@app.command()
@asks_mesh
def disagreements(
    mesh: AskedMesh,
    name: Name,
    examples: Annotated[
        int, typer.Option(metavar="NUMBER", min=0, help="Show so many of the last ones.")
    ] = 3,
    json: AsJson = False,
) -> None:
    """Show where the new version answers otherwise: how often, on what kind of requests, and examples."""
    with mesh.client() as client:
        found = client.disagreements(name)
    if json:
        print_json(msgspec.to_builtins(found))
    else:
        print_disagreements(found, examples)


def _order(
    mesh: AskedMesh,
    name: str,
    verb: Verb,
    reason: str,
    timeout: str | None,
    *,
    watch: bool = False,
    wait: bool = False,
    json: bool,
) -> None:
    wait_s = _wait_s(timeout, watch=watch, wait=wait)
    with mesh.client() as client:
        found = _known(client, name, lambda: client.rollout_do(name, verb, reason=reason))
        if watch or wait:
            _follow(client, name, wait_s, watch=watch, wait=wait, json=json)
            return
        answer = _answer(client, name, found)
    if json:
        print_json(msgspec.to_builtins(answer or found))
    elif answer is None:
        typer.echo(
            f"{plain(name)}: asked to {verb}; what comes of it: meshnode rollout status {plain(name)}"
        )
    elif not _is_refused(answer):
        typer.echo(
            f"{plain(name)}: {plain(answer.outcome or answer.phase)}: {plain(answer.reason)}"
        )
    if answer is not None and _is_refused(answer):
        raise InvalidRequest(answer.decisions[-1].reason)


def _answer(client: MeshClient, name: str, asked: RolloutInfo) -> RolloutInfo | None:
    """Return how the release stands once its steward has answered an order; None where nothing is heard of it."""
    deadline = time.monotonic() + ANSWERED_WITHIN_S
    before = _standing(asked)
    while time.monotonic() < deadline:
        found = client.rollout(name)
        if _standing(found) != before:
            return found
        time.sleep(_LOOK_S)
    return None


def _standing(info: RolloutInfo) -> tuple[object, ...]:
    return info.phase, info.step, info.since, info.outcome, info.decisions


def _is_refused(info: RolloutInfo) -> bool:
    return bool(info.decisions) and info.decisions[-1].kind == "refused"


def _follow(
    client: MeshClient, name: str, wait_s: float | None, *, watch: bool, wait: bool, json: bool
) -> None:
    """Follow a release until it has ended; with `wait` its outcome is the exit code."""
    try:
        with RolloutDisplay() as display:
            shown = _shown(display, watch=watch, json=json)
            found = _known(
                client,
                name,
                lambda: client.run(client.following(name, shown, wait_s, until_over=True)),
            )
    except KeyboardInterrupt:
        if wait:
            raise
        return  # nobody waits for more than the view
    if not watch:
        _print(found, json=json)
    if wait and found.outcome != "promoted":
        raise typer.Exit(_NOT_PROMOTED)


def _shown(display: RolloutDisplay, *, watch: bool, json: bool) -> Callable[[RolloutInfo], object]:
    if not watch:
        return lambda _: None
    if json:
        return lambda info: print_json(msgspec.to_builtins(info))
    return display.show


def _known(client: MeshClient, name: str, ask: Callable[[], RolloutInfo]) -> RolloutInfo:
    try:
        return ask()
    except ModelNotFound as error:
        raise unknown_model(client, name, error) from None


def _wait_s(timeout: str | None, *, watch: bool, wait: bool) -> float | None:
    """Return how long to follow, in seconds; None for as long as it takes.

    Raises:
        ConfigError: if a time was given, and nothing to wait for.
    """
    if timeout is None:
        return None
    if not (watch or wait):
        raise ConfigError("--timeout goes with --watch or --wait")
    return parse_duration("--timeout", timeout)


def _print(found: RolloutInfo, *, json: bool) -> None:
    if json:
        print_json(msgspec.to_builtins(found))
    else:
        print_rollout(found)
