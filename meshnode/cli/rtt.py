"""`meshnode rtt`: how far two nodes of the mesh are from each other."""

from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import urlencode

import typer

from meshnode.cli.arguments import AsJson, AskedMesh, asks_mesh
from meshnode.cli.output import plain, print_json


@asks_mesh
def rtt(
    mesh: AskedMesh,
    one: Annotated[str, typer.Argument(metavar="A", help="A node's name or id.")],
    other: Annotated[str, typer.Argument(metavar="B", help="Another node's name or id.")],
    json: AsJson = False,
) -> None:
    """Show the round-trip time between any two nodes; ~ marks an estimate."""
    query = urlencode({"from": one, "to": other})
    with mesh.client() as client:
        found = client.get(f"/mesh/v1/rtt?{query}")
    if json:
        print_json(found)
        return
    told = rtt_text(found) or "not known yet: the nodes have to probe others for a while"
    typer.echo(plain(f"{found['from']['name']} to {found['to']['name']}: {told}"))


def rtt_text(found: Mapping[str, Any]) -> str | None:
    """Return a round trip for people, such as `12.3 ms`, `~80 ms` for an estimate, `43.1 ms via box`; None if unknown."""
    rtt_ms = found.get("rtt_ms")
    if rtt_ms is None:
        return None
    if not found.get("rtt_estimated"):
        relay = found.get("relay")
        return f"{rtt_ms:.1f} ms" + (f" via {relay}" if relay else "")
    return f"~{rtt_ms:.0f} ms" if rtt_ms >= 10 else f"~{rtt_ms:.1f} ms"
