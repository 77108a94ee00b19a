"""`meshnode invite`: the line to type on the next device."""

import contextlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from meshnode.cli.arguments import AsJson, AskedMesh, asks_mesh
from meshnode.cli.output import plain, print_json
from meshnode.errors import ConfigError
from meshnode.limits import MAX_INVITE_LENGTH, MAX_INVITE_TTL_S, MAX_INVITE_USES
from meshnode.options import ONLY_HERE, check_invite_text, only_here, parse_duration
from meshnode.types import Role


@asks_mesh
def invite(
    mesh: AskedMesh,
    ttl: Annotated[
        str, typer.Option(help="How long it may be used: 10m, 24h, 7d.", metavar="DURATION")
    ] = "24h",
    uses: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MAX_INVITE_USES,
            help="How many devices may join with it.",
            metavar="N",
            show_default="any number",
        ),
    ] = None,
    role: Annotated[
        Role,
        typer.Option(
            help="What they may do: a member serves (a device you lend), an operator also deploys and "
            "invites, an admin also evicts and gives roles."
        ),
    ] = Role.OPERATOR,
    region: Annotated[
        str,
        typer.Option(
            help="Where they are, unless they say otherwise when they join.",
            metavar="REGION",
            show_default="where they say",
        ),
    ] = "",
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            help="Write the line to this file, which only you can read.",
            metavar="FILE",
        ),
    ] = None,
    json: AsJson = False,
) -> None:
    """Print an invite: the line that lets another device join this mesh."""
    ttl_s = round(parse_duration("--ttl", ttl))
    if ttl_s < 1:
        raise ConfigError(f"--ttl: {ttl!r} is shorter than a second")
    if ttl_s > MAX_INVITE_TTL_S:
        days = MAX_INVITE_TTL_S // 86_400
        raise ConfigError(f"--ttl: {ttl!r} is longer than an invite may last, {days} days")
    with mesh.client() as client:
        wish = {"ttl_s": ttl_s, "uses": uses or 0, "role": str(role), "region": region}
        answer = client.post("/mesh/v1/invites", wish)
    if output is not None:
        path = Path(output).expanduser().absolute()
        _write_private(path, f"{answer['invite']}\n")
        if json:
            del answer["invite"]
            print_json({"output": str(path), **answer})
        else:
            _tell_written(path, answer)
            _tell_reach(answer)
        return
    if json:
        print_json(answer)
        return
    # Not through rich: the line must stay one line, whatever the terminal's width. A program, such as
    # `meshnode join "$(meshnode invite)"`, gets the invite alone.
    line = plain(answer["invite"])
    for_program = not sys.stdout.isatty()
    typer.echo("On the other device, type:\n", err=for_program)
    if for_program:
        typer.echo("  meshnode join INVITE\n", err=True)
    typer.echo(line if for_program else f"  meshnode join {line}\n")
    typer.echo(
        f"{_validity(answer)}. Who has this line can join: keep it private.", err=for_program
    )
    _tell_reach(answer, err=for_program)


def _tell_reach(answer: Mapping[str, Any], *, err: bool = False) -> None:
    """Say it where no other device can use the invite."""
    addresses = answer.get("addresses") or ()  # a node of an earlier version does not say
    if addresses and only_here(addresses):
        typer.echo(ONLY_HERE, err=err)


def _write_private(path: Path, text: str) -> None:
    """Write a file that nobody else can read, not even for a moment."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        partial.unlink(missing_ok=True)
        with open(
            partial, "x", encoding="ascii", opener=lambda name, flags: os.open(name, flags, 0o600)
        ) as file:
            file.write(text)
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise ConfigError(
            f"--output: {path} cannot be written ({error.strerror or error}); name another file"
        ) from None


def _validity(answer: Mapping[str, Any]) -> str:
    """Say what the invite allows, as a clause without its full stop."""
    uses = answer.get("uses") or 0  # a node of an earlier version does not limit them
    times = f", for {uses} device{'s' if uses > 1 else ''}" if uses else ""
    role = answer.get("role") or Role.OPERATOR
    as_role = "" if role == Role.OPERATOR else f", as {plain(role)}"
    return f"Valid until {plain(answer['expires_at'])}{times}{as_role}"


def _tell_written(path: Path, answer: Mapping[str, Any]) -> None:
    typer.echo(f"The invite is in {path}. On the other device, with a copy of that file, type:\n")
    typer.echo(f"  meshnode join --invite-file {path.name}\n")
    typer.echo(f"{_validity(answer)}. Who has this file can join: keep it private.")


def read_invite(given: str | None, file: str | None) -> str | None:
    """Return the invite that a command line named, without white space around it.

    Args:
        given: The argument: an invite, or `-` for standard input.
        file: What `--invite-file` named.

    Returns:
        The line, or None if neither was given.

    Raises:
        ConfigError: if both were given, or the file cannot be read.
        InviteError: if it cannot be an invite.
    """
    if file is not None:
        if given is not None:
            raise ConfigError("an invite is given and --invite-file as well; give one of them")
        path = Path(file).expanduser()
        try:
            with path.open("rb") as stream:
                return _read_line(stream)
        except OSError as error:
            raise ConfigError(
                f"--invite-file: {path} cannot be read ({error.strerror or error})"
            ) from None
    if given == "-":
        if sys.stdin.isatty():
            typer.echo("Paste the invite, the mesh1… line, and press Enter:", err=True)
        return _read_line(sys.stdin.buffer)
    return None if given is None else check_invite_text(given.strip())


def _read_line(stream: IO[bytes]) -> str:
    """Read an invite; lines behind it, and what is far too long for one, are not read."""
    room = 2 * MAX_INVITE_LENGTH  # with white space around it
    while line := stream.readline(room):
        room -= len(line)
        if line.strip() or room <= 0:
            return check_invite_text(line.decode(errors="replace").strip())
    raise ConfigError("no invite was given: the input is empty")
