"""`meshnode nodes`, `models` and `status`: what the daemon knows of its mesh."""

from collections.abc import Iterable, Mapping
from typing import Any

from meshnode.cli.arguments import AsJson, DataDir, client_of
from meshnode.cli.output import print_json, print_table


def nodes(json: AsJson = False, data_dir: DataDir = None) -> None:
    """List the mesh's nodes."""
    found = client_of(data_dir).get("/mesh/v1/nodes")
    if json:
        print_json(found)
        return
    columns = ("NAME", "STATE", "REGION", "ZONE", "RTT", "GATEWAY", "MESH", "ID")
    rows = [_node_row(node) for node in found]
    droppable = ("ZONE", "ID", "MESH", "GATEWAY")
    print_table(columns, rows, empty="This mesh has no nodes.", droppable=droppable)


def _node_row(node: Mapping[str, Any]) -> tuple[object, ...]:
    rtt_ms = node.get("rtt_ms")
    rtt = "here" if node.get("self") else None if rtt_ms is None else f"{rtt_ms:.1f} ms"
    places = (node.get("region"), node.get("zone"), rtt, node.get("http"), node.get("mesh"))
    return (node["name"], node["state"], *places, node["id"])


def models(json: AsJson = False, data_dir: DataDir = None) -> None:
    """List the mesh's models and where they are served."""
    found = client_of(data_dir).get("/mesh/v1/models")
    if json:
        print_json(found)
    else:
        print_models(found)


def print_models(entries: Iterable[Mapping[str, Any]]) -> None:
    """Print model entries as a table with a line for each replica."""
    rows = [row for entry in entries for row in _model_rows(entry)]
    columns = ("MODEL", "VERSION", "NODE", "STATE", "REASON")
    print_table(columns, rows, empty="No models yet; deploy one with: meshnode deploy PATH")


def _model_rows(entry: Mapping[str, Any]) -> list[tuple[object, ...]]:
    replicas = entry.get("replicas") or []
    if not replicas:
        versions = ", ".join(str(version) for version in entry.get("versions", ()))
        return [(entry["name"], versions, None, "no replica", None)]
    return [
        (entry["name"], it["version"], it["node"], it["state"], it.get("reason")) for it in replicas
    ]


def status(json: AsJson = False, data_dir: DataDir = None) -> None:
    """Show this node: its name, mesh and addresses."""
    found = client_of(data_dir).get("/mesh/v1/status")
    if json:
        print_json(found)
        return
    names = {
        "name": "name",
        "id": "id",
        "mesh": "mesh",
        "state": "state",
        "members": "members",
        "http": "gateway",
        "mesh_address": "mesh address",
        "version": "version",
    }
    rows = [(label, found.get(key)) for key, label in names.items()]
    print_table(("THIS NODE", ""), rows, empty="")
