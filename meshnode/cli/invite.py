"""`meshnode invite`: the line to type on the next device."""

from typing import Annotated

import typer

from meshnode.cli.arguments import AsJson, DataDir, client_of
from meshnode.cli.output import plain, print_json
from meshnode.config import MAX_INVITE_TTL_S
from meshnode.errors import ConfigError
from meshnode.options import parse_duration


def invite(
    ttl: Annotated[
        str, typer.Option(help="How long it may be used: 10m, 24h, 7d.", metavar="DURATION")
    ] = "24h",
    json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Print an invite: the line that lets another device join this mesh."""
    ttl_s = round(parse_duration("--ttl", ttl))
    if ttl_s < 1:
        raise ConfigError(f"--ttl: {ttl!r} is shorter than a second")
    if ttl_s > MAX_INVITE_TTL_S:
        days = MAX_INVITE_TTL_S // 86_400
        raise ConfigError(f"--ttl: {ttl!r} is longer than an invite may last, {days} days")
    answer = client_of(data_dir).post("/mesh/v1/invites", {"ttl_s": ttl_s})
    if json:
        print_json(answer)
        return
    # Not through rich: the line must stay one line, whatever the terminal's width.
    typer.echo("On the other device, type:\n")
    typer.echo(f"  meshnode join {plain(answer['invite'])}\n")
    typer.echo(
        f"Valid until {plain(answer['expires_at'])}. Who has this line can join: keep it private."
    )
