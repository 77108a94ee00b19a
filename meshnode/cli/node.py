"""`meshnode node show`: everything that the mesh knows of one node; and words for `nodes --wide`.

What nodes say of themselves is read through `meshnode.capabilities`, so that a node of another
version, or one that lies, shows as little as it makes sense.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from meshnode.capabilities import Capabilities, read
from meshnode.cli.arguments import AsJson, AskedMesh, asks_mesh, no_node
from meshnode.cli.inspect import profile_text
from meshnode.cli.output import plain, print_json
from meshnode.errors import ConfigError
from meshnode.owner_limits import size_text

app = typer.Typer(name="node", help="Look at one node of the mesh.", no_args_is_help=True)

_SPEED_WORDS = {
    "matmul_gflops": "{:g} GFLOPS on all processors",
    "matmul_gflops_one_core": "{:g} GFLOPS on one",
    "memory_gb_per_s": "{:g} GB/s to and from memory",
    "disk_write_mb_per_s": "{:g} MB/s to disk",
}


@app.callback()
def _node() -> None:
    """Keep `show` a command of its own although it is the only one."""


@app.command()
@asks_mesh
def show(
    mesh: AskedMesh,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A node's name or id.")],
    json: AsJson = False,
) -> None:
    """Show everything about one node: its machine, limits, speed, load and replicas."""
    with mesh.client() as client:
        found = {**find_node(client.get("/mesh/v1/nodes"), name)}
        models = client.get("/mesh/v1/models")
    found["replicas"] = [
        {"model": entry["name"], **replica}
        for entry in models
        for replica in entry.get("replicas") or ()
        if replica.get("node_id") == found["id"]
    ]
    if json:
        print_json(found)
        return
    for title, lines in sections(found):
        typer.echo(title)
        for line in lines:
            typer.echo(f"  {plain(line)}")


def find_node(nodes: Sequence[Mapping[str, Any]], text: str) -> Mapping[str, Any]:
    """Return the node that is called so, or has this id; of several the only one that lives.

    Raises:
        ConfigError: if there is none, or several.
    """
    found = [node for node in nodes if text in (node["id"], node["name"])]
    live = [node for node in found if node["state"] in ("alive", "suspect")] or found
    if not live:
        known = [str(node["name"]) for node in nodes]
        raise no_node(text, known)
    if len(live) > 1:
        choices = ", ".join(str(node["id"]) for node in live)
        raise ConfigError(f"several nodes are called {text!r}; name one by its id: {choices}")
    return live[0]


def sections(node: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Return what `node show` prints: titles, and the lines under each; empty sections are left out."""
    facts = read(node.get("capabilities") or {})
    found = [
        ("Node", _node_lines(node, facts)),
        ("Machine", _machine_lines(facts)),
        ("Accelerators", _accelerator_lines(facts, node.get("load") or {})),
        ("Runtimes", _runtime_lines(facts)),
        ("Speed", [_SPEED_WORDS[name].format(value) for name, value in facts.speed.items()]),
        ("Owner's limits", _limit_lines(facts)),
        ("Load", _load_lines(node.get("load") or {})),
        ("Replicas", _replica_lines(node.get("replicas") or ())),
        ("Not there", list(facts.absent)),
    ]
    return [(title, lines) for title, lines in found if lines]


def _node_lines(node: Mapping[str, Any], facts: Capabilities) -> list[str]:
    place = ", ".join(filter(None, (str(node.get("region") or ""), str(node.get("zone") or ""))))
    labels = ", ".join(f"{key}={value}" for key, value in (node.get("labels") or {}).items())
    rows = {
        "name": node["name"],
        "id": node["id"],
        "state": node["state"],
        "paused": facts.paused,
        "region": place,
        "labels": labels,
        "gateway": node.get("http"),
        "mesh": node.get("mesh"),
    }
    return [f"{key:<8} {value}" for key, value in rows.items() if value]


def _machine_lines(facts: Capabilities) -> list[str]:
    cpu = facts.cpu
    lines = []
    if cpu.model:
        lines.append(cpu.model)
    if facts.cpus:
        lines.append(_processors_text(facts))
    if facts.memory_bytes:
        lines.append(f"{size_text(facts.memory_bytes)} of memory to use{_of_total(facts)}")
    if facts.disk.total_bytes:
        free, total = size_text(facts.disk.free_bytes), size_text(facts.disk.total_bytes)
        lines.append(f"{free} of {total} free on the disk of its data folder")
    lines.append(f"{facts.os or 'unknown system'}, {facts.architecture or 'unknown architecture'}")
    lines.append(f"power: {facts.power}")
    return lines


def _processors_text(facts: Capabilities) -> str:
    cpu = facts.cpu
    text = f"{facts.cpus:g} processor{'' if facts.cpus == 1 else 's'} to use"
    if cpu.logical_cores:
        text += f", of {cpu.logical_cores} ({cpu.physical_cores or cpu.logical_cores} cores)"
    return text + (f", up to {cpu.max_mhz} MHz" if cpu.max_mhz else "")


def _of_total(facts: Capabilities) -> str:
    if facts.memory_total_bytes > facts.memory_bytes:
        return f", of {size_text(facts.memory_total_bytes)}"
    return ""


def _accelerator_lines(facts: Capabilities, load: Mapping[str, Any]) -> list[str]:
    use = {each.get("index"): each for each in load.get("accelerators") or ()}
    lines = []
    for index, each in enumerate(facts.accelerators):
        words = [each.name or each.kind, each.kind]
        words += [size_text(each.memory_bytes)] if each.memory_bytes else []
        words += [f"compute {each.compute}"] if each.compute else []
        words += [f"driver {each.driver}"] if each.driver else []
        if index in use:
            free = size_text(int(use[index]["memory_free_bytes"]))
            words.append(f"{use[index]['utilisation']:.0%} busy, {free} free")
        lines.append(", ".join(words))
    return lines


def _runtime_lines(facts: Capabilities) -> list[str]:
    lines = []
    for name in dict.fromkeys((*facts.runtimes, *facts.runtime_details)):
        details = facts.runtime_details.get(name)
        version = f" {details.version}" if details is not None and details.version else ""
        told = ""
        if details is not None:
            told = details.missing or ", ".join(details.devices or details.providers)
        if name not in facts.runtimes and details is not None and not details.missing:
            told += " (own models only: --allow-code is off)"
        lines.append(f"{name}{version}{': ' if told else ''}{told}")
    return lines


def _limit_lines(facts: Capabilities) -> list[str]:
    limits = facts.limits
    words = []
    if limits.max_memory_bytes:
        words.append(f"at most {size_text(limits.max_memory_bytes)} of memory")
    if limits.max_cpus:
        words.append(f"at most {limits.max_cpus} processors")
    if limits.nice:
        words.append(f"priority {limits.nice}")
    if limits.only_on_mains:
        words.append("serves on mains only")
    if limits.max_temperature_c is not None:
        words.append(f"serves up to {limits.max_temperature_c:g} °C")
    return [*words, *(f"not enforced: {each}" for each in limits.not_enforced)]


def _load_lines(load: Mapping[str, Any]) -> list[str]:
    lines = [load_text(load)] if load else []
    if "memory_available_bytes" in load:
        lines.append(f"{size_text(int(load['memory_available_bytes']))} of memory free")
    if load.get("battery_percent") is not None:
        lines.append(f"battery at {load['battery_percent']:.0f} %")
    return lines


def _replica_lines(replicas: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        f"{each['model']} version {each['version']}: {each['state']}"
        + (f" ({each['reason']})" if each.get("reason") else "")
        + (f", {profile_text(each['profile'])}" if each.get("profile") else "")
        for each in replicas
    ]


# Cells of `nodes --wide`


def wide_row(node: Mapping[str, Any]) -> tuple[object, ...]:
    """Return a node's cells from CPU to LOAD."""
    facts = read(node.get("capabilities") or {})
    load = node.get("load") or {}
    return (
        cpu_text(facts),
        memory_text(facts, load),
        accelerators_text(facts),
        power_text(facts, load),
        f"{facts.speed['matmul_gflops']:g} GFLOPS" if "matmul_gflops" in facts.speed else None,
        load_text(load) if load else None,
        facts.paused or None,
    )


def cpu_text(facts: Capabilities) -> str | None:
    """Return such as `8 x AMD Ryzen 7`."""
    if not facts.cpus:
        return None
    return f"{facts.cpus:g} x {facts.cpu.model}" if facts.cpu.model else f"{facts.cpus:g}"


def memory_text(facts: Capabilities, load: Mapping[str, Any]) -> str | None:
    """Return such as `16.4 GB, 9.1 GB free`."""
    if not facts.memory_bytes:
        return None
    free = load.get("memory_available_bytes")
    return size_text(facts.memory_bytes) + (f", {size_text(int(free))} free" if free else "")


def accelerators_text(facts: Capabilities) -> str | None:
    """Return such as `2 x NVIDIA H200 (151 GB)`, equal ones counted."""
    counts: Counter[str] = Counter()
    for each in facts.accelerators:
        memory = f" ({size_text(each.memory_bytes)})" if each.memory_bytes else ""
        counts[(each.name or each.kind) + memory] += 1
    names = [name if count == 1 else f"{count} x {name}" for name, count in counts.items()]
    return ", ".join(names) or None


def power_text(facts: Capabilities, load: Mapping[str, Any]) -> str | None:
    """Return such as `battery, 63 %`."""
    percent = load.get("battery_percent")
    charge = f", {percent:.0f} %" if isinstance(percent, int | float) else ""
    return None if facts.power == "unknown" else facts.power + charge


def load_text(load: Mapping[str, Any]) -> str:
    """Return such as `12 % CPU, 3 requests, 61 °C`."""
    words = [f"{100 * float(load.get('cpu') or 0):.0f} % CPU"]
    requests = int(load.get("in_system") or 0)
    words.append(f"{requests} request{'' if requests == 1 else 's'}")
    temperature_c = load.get("temperature_c")
    if isinstance(temperature_c, int | float):
        words.append(f"{temperature_c:.0f} °C")
    return ", ".join(words)
