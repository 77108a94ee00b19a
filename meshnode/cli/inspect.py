"""`meshnode nodes`, `models` and `status`: what the daemon knows of its mesh."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Final

import typer

from meshnode.cli.arguments import AsJson, AskedMesh, asks_mesh
from meshnode.cli.output import print_json, print_table
from meshnode.cli.rtt import rtt_text

_WIDE = ("CPU", "MEMORY", "ACCELERATORS", "POWER", "SPEED", "LOAD", "PAUSED")


@asks_mesh
def nodes(
    mesh: AskedMesh,
    wide: Annotated[
        bool, typer.Option("--wide", help="Show what the machines are and how they fare.")
    ] = False,
    json: AsJson = False,
) -> None:
    """List the mesh's nodes."""
    with mesh.client() as client:
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

    rows = [(node["name"], _state(node), node.get("region"), *wide_row(node)) for node in found]
    columns = ["NAME", "STATE", "REGION", *_WIDE]
    if not any(row[-1] for row in rows):  # a column that is empty nearly always
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    droppable = ("REGION", "SPEED", "POWER")
    print_table(columns, rows, empty="This mesh has no nodes.", droppable=droppable)


def _node_row(node: Mapping[str, Any]) -> tuple[object, ...]:
    rtt = "here" if node.get("self") else rtt_text(node)
    places = (node.get("region"), node.get("zone"), rtt, node.get("http"), node.get("mesh"))
    return (node["name"], _state(node), *places, node["id"])


def _state(node: Mapping[str, Any]) -> str:
    """Return a node's state, or of one that is there and is emptied, how far that is."""
    drain = node.get("drain")
    return str(drain if drain and node["state"] == "alive" else node["state"])


@asks_mesh
def models(
    mesh: AskedMesh,
    json: AsJson = False,
) -> None:
    """List the mesh's models and where they are served."""
    with mesh.client() as client:
        found = client.get("/mesh/v1/models")
    if json:
        print_json(found)
    else:
        print_models(found)


_MODEL_COLUMNS: Final = (
    "MODEL",
    "VERSION",
    "NODE",
    "STATE",
    "OFFERED AS",
    "RUNS ON",
    "BATCHING",
    "SERVICE TIME",
    "METRICS",
    "REASON",
)
_TOLD_BY_SOME: Final = ("OFFERED AS", "RUNS ON", "BATCHING", "SERVICE TIME", "METRICS")


def print_models(entries: Iterable[Mapping[str, Any]]) -> None:
    """Print model entries as a table with a line for each replica."""
    found = [row for entry in entries for row in _model_rows(entry)]
    # What no replica tells takes no room: most is told once a replica is ready.
    shown = [
        number
        for number, title in enumerate(_MODEL_COLUMNS)
        if title not in _TOLD_BY_SOME or any(row[number] for row in found)
    ]
    rows = [tuple(row[number] for number in shown) for row in found]
    columns = tuple(_MODEL_COLUMNS[number] for number in shown)
    empty = "No models yet; deploy one with: meshnode deploy PATH"
    print_table(columns, rows, empty=empty, droppable=("BATCHING", "SERVICE TIME"))


def _model_rows(entry: Mapping[str, Any]) -> list[tuple[object, ...]]:
    replicas = entry.get("replicas") or []
    if not replicas:
        versions = ", ".join(str(version) for version in entry.get("versions", ()))
        nothing = [None] * (len(_MODEL_COLUMNS) - 4)
        return [(entry["name"], versions, None, "no replica", *nothing)]
    return [
        (
            entry["name"],
            _version(it),
            it["node"],
            it["state"],
            _offer(entry),
            _runs_on(it),
            it.get("batching"),
            profile_text(it.get("profile") or ()),
            _metrics(it),
            it.get("reason") or _taken(entry) or _fetch(it) or it.get("restarted"),
        )
        for it in replicas
    ]


def _offer(entry: Mapping[str, Any]) -> str:
    """Return how a model is offered besides by its name: its path and its tasks."""
    tasks = [str(each).partition(":")[0] for each in entry.get("tasks") or ()]
    return ", ".join([*filter(None, (entry.get("endpoint"),)), *tasks])


def _taken(entry: Mapping[str, Any]) -> str:
    """Return at which paths of a model another one is asked; empty for none."""
    return "; ".join(
        f"{each['path']} is taken by {each['by']}" for each in entry.get("taken") or ()
    )


def _version(replica: Mapping[str, Any]) -> str:
    """Return a replica's version with its author's label and its variant, where it has them."""
    label = (replica.get("provenance") or {}).get("label")
    words = (replica["version"], f"({label})" if label else "", replica.get("variant"))
    return " ".join(str(word) for word in words if word)


def _metrics(replica: Mapping[str, Any]) -> str:
    metrics = (replica.get("provenance") or {}).get("metrics") or {}
    return ", ".join(f"{name}={value:g}" for name, value in metrics.items())


def profile_text(profile: Sequence[Sequence[float]]) -> str:
    """Return the service time of one row and of the largest batch, such as `0.1 ms, 64 rows 2.5 ms`."""
    if not profile:
        return ""
    first, last = profile[0], profile[-1]
    text = f"{first[1]:.3g} ms" if first[0] == 1 else f"{first[0]:g} rows {first[1]:.3g} ms"
    return text if last is first else f"{text}, {last[0]:g} rows {last[1]:.3g} ms"


def _runs_on(replica: Mapping[str, Any]) -> str:
    """Return what executes a replica, such as `onnx on cpu` or `torch on cuda:0, 2 instances`."""
    device, instances = replica.get("device"), replica.get("instances") or 1
    if not device:
        return ""
    several = f", {instances} instances" if instances > 1 else ""
    return f"{replica.get('runtime', '')} on {device}{several}"


def _fetch(replica: Mapping[str, Any]) -> str | None:
    """Say how far a replica's node is with fetching its files."""
    from meshnode.client.results import FetchInfo, read_as  # only where one is shown

    fetch = replica.get("fetch")
    return None if fetch is None else str(read_as(FetchInfo, fetch))


@asks_mesh
def status(
    mesh: AskedMesh,
    json: AsJson = False,
) -> None:
    """Show this node: its mesh and addresses, and how its daemon does."""
    with mesh.client() as client:
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
