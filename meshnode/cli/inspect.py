"""`meshnode nodes`, `models` and `status`: what the daemon knows of its mesh."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import typer

from meshnode.cli.arguments import AsJson, CaFile, DataDir, Gateway, KeyFile, client_of
from meshnode.cli.output import print_json, print_table
from meshnode.cli.rtt import rtt_text

_WIDE = ("CPU", "MEMORY", "ACCELERATORS", "POWER", "SPEED", "LOAD", "PAUSED")


def nodes(
    wide: Annotated[
        bool, typer.Option("--wide", help="Show what the machines are and how they fare.")
    ] = False,
    json: AsJson = False,
    gateway: Gateway = None,
    key_file: KeyFile = None,
    ca_file: CaFile = None,
    data_dir: DataDir = None,
) -> None:
    """List the mesh's nodes."""
    with client_of(data_dir, gateway, key_file, ca_file) as client:
        found = client.get("/mesh/v1/nodes")
    if json:
        print_json(found)
        return
    if wide:
        _print_wide(found)
        return
    columns = ("NAME", "STATE", "REGION", "ZONE", "RTT", "GATEWAY", "MESH", "ID")
    rows = [_node_row(node) for node in found]
    droppable = ("ZONE", "ID", "MESH", "GATEWAY")
    print_table(columns, rows, empty="This mesh has no nodes.", droppable=droppable)


def _print_wide(found: Sequence[Mapping[str, Any]]) -> None:
    from meshnode.cli.node import wide_row

    rows = [(node["name"], node["state"], node.get("region"), *wide_row(node)) for node in found]
    columns = ["NAME", "STATE", "REGION", *_WIDE]
    if not any(row[-1] for row in rows):  # a column that is empty nearly always
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    droppable = ("REGION", "SPEED", "POWER")
    print_table(columns, rows, empty="This mesh has no nodes.", droppable=droppable)


def _node_row(node: Mapping[str, Any]) -> tuple[object, ...]:
    rtt = "here" if node.get("self") else rtt_text(node)
    places = (node.get("region"), node.get("zone"), rtt, node.get("http"), node.get("mesh"))
    return (node["name"], node["state"], *places, node["id"])


def models(
    json: AsJson = False,
    gateway: Gateway = None,
    key_file: KeyFile = None,
    ca_file: CaFile = None,
    data_dir: DataDir = None,
) -> None:
    """List the mesh's models and where they are served."""
    with client_of(data_dir, gateway, key_file, ca_file) as client:
        found = client.get("/mesh/v1/models")
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


def status(
    json: AsJson = False,
    gateway: Gateway = None,
    key_file: KeyFile = None,
    ca_file: CaFile = None,
    data_dir: DataDir = None,
) -> None:
    """Show this node: its mesh and addresses, and how its daemon does."""
    with client_of(data_dir, gateway, key_file, ca_file) as client:
        found = client.get("/mesh/v1/status")
    if json:
        print_json(found)
        return
    names = {
        "name": "name",
        "id": "id",
        "mesh": "mesh",
        "state": "state",
        "paused": "paused",
        "twin": "runs twice",
        "members": "members",
        "serving": "models served",
        "http": "gateway",
        "mesh_address": "mesh address",
        "version": "version",
        "pid": "pid",
        "started_at": "started at",
        "uptime_s": "up for",
        "memory_bytes": "memory in use",
        "profile": "profile",
        "data_dir": "data folder",
        "log_file": "log file",
        "config_files": "settings from",
    }
    shown = found | {
        "uptime_s": _duration(found.get("uptime_s")),
        "memory_bytes": _size(found.get("memory_bytes")),
        "config_files": ", ".join(found.get("config_files") or ()),
    }
    rows = [
        (label, shown.get(key))
        for key, label in names.items()
        if shown.get(key) is not None or key not in ("paused", "twin")
    ]
    print_table(("THIS NODE", ""), rows, empty="")


def _duration(seconds: float | None) -> str | None:
    """Return a duration for people, such as `2 d 3 h` or `42 s`."""
    if seconds is None:
        return None
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (rest, "s")]
    largest = next((index for index, (count, _) in enumerate(parts) if count), len(parts) - 1)
    return " ".join(f"{count} {unit}" for count, unit in parts[largest : largest + 2])


def _size(size_bytes: int | None) -> str | None:
    return None if size_bytes is None else f"{size_bytes / 1e6:.0f} MB"
