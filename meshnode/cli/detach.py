"""`meshnode join --detach`: start the daemon in the background and wait until it is a member."""

from __future__ import annotations

import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from meshnode.client.mesh import MeshClient
from meshnode.errors import ConfigError, MeshError
from meshnode.folderlock import holder, in_use
from meshnode.limits import DETACH_TIMEOUT_S, DRAIN_LIMIT_S

if TYPE_CHECKING:
    from typing import Any

    from meshnode.options import JoinOptions

_POLL_S = 0.05
_ANSWER_S = 2.0  # a status is answered from the daemon's own tables
_UMASK = 0o077  # what a node writes is its owner's alone


def start_detached(options: JoinOptions) -> int:
    """Start a daemon that outlives this process; show its welcome, or why there is none.

    Args:
        options: What it shall be.

    Returns:
        0 once it is a member and answers; otherwise the code with which it ended.

    Raises:
        ConfigError: if a daemon runs on the folder already, or none can be started.
        KeyboardInterrupt: after the daemon was ended again.
    """
    data_dir = Path(options.data_dir)
    running = holder(data_dir)
    if running is not None:
        raise ConfigError(in_use(data_dir, running))
    process = _spawn(options)
    try:
        _show_output(process)
        code = _outcome(process, data_dir)
    except KeyboardInterrupt:
        typer.echo("stopping it again ...", err=True)
        _end(process)
        raise
    if code is None:
        typer.echo(
            f"It runs in the background (pid {process.pid}). See: meshnode status, meshnode logs -f; "
            "stop it with: meshnode stop",
            err=True,
        )
        process.returncode = 0  # not ours to wait for: it stays when this process ends
        return 0
    return code


def _spawn(options: JoinOptions) -> subprocess.Popen[bytes]:
    # -P: the daemon is this very program, and not whatever the working folder calls meshnode.
    command = [sys.executable, "-P", "-m", "meshnode.cli.background", options.data_dir]
    apart: dict[str, Any] = {"start_new_session": True, "umask": _UMASK}
    if sys.platform == "win32":
        apart = {"creationflags": subprocess.DETACHED_PROCESS | subprocess.CREATE_NEW_PROCESS_GROUP}
    try:
        process = subprocess.Popen(  # noqa: S603 - this very program
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **apart
        )
    except OSError as error:
        raise ConfigError(
            f"no process could be started ({error.strerror or error}); close some programs and try "
            "again"
        ) from error
    assert process.stdin is not None
    try:
        with process.stdin as pipe:
            pickle.dump(options, pipe)
    except BrokenPipeError:
        pass  # it ended already, and has said why
    return process


def _show_output(process: subprocess.Popen[bytes]) -> None:
    """Pass on what it says until it lets go of us, or ends."""
    assert process.stdout is not None
    with process.stdout as output:
        for line in output:
            typer.echo(line.decode(errors="replace"), nl=False)


def _outcome(process: subprocess.Popen[bytes], data_dir: Path) -> int | None:
    """Wait until it answers (None) or has ended (its exit code)."""
    client = MeshClient.local(data_dir)
    deadline = time.monotonic() + DETACH_TIMEOUT_S
    while (code := process.poll()) is None:
        try:
            if client.get("/mesh/v1/status", timeout_s=_ANSWER_S).get("pid") == process.pid:
                return None
        except MeshError:
            pass  # not yet, or it is ending
        if time.monotonic() > deadline:
            raise ConfigError(
                f"the daemon (pid {process.pid}) runs and does not answer; see `meshnode logs`, or "
                "end it with `meshnode stop --now`"
            )
        time.sleep(_POLL_S)
    return code if code >= 0 else 128 - code  # as shells report a signal


def _end(process: subprocess.Popen[bytes]) -> None:
    """End it politely; a second Ctrl-C ends it at once."""
    process.terminate()
    try:
        process.wait(DRAIN_LIMIT_S + _ANSWER_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.kill()
        process.wait()
