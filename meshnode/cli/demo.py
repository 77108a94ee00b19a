"""`meshnode demo`: three daemons, a real model, a killed node, and what clients noticed of it.

The whole first hour in a minute: found a mesh, invite two nodes, deploy a model onto two of the
three, ask the third one, kill a serving node without warning in the middle of a stream of requests,
and count. Progress goes to stderr, the result to stdout.
"""

import http.client
import json as json_codec
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

import typer

from meshnode.cli.arguments import AsJson
from meshnode.cli.demo_load import DURING_S, LoadReport, RequestStream, report
from meshnode.cli.demo_mesh import DemoMesh, DemoNode, Interrupts, wait_until
from meshnode.cli.inputs import image_array
from meshnode.cli.output import plain, print_json, print_table
from meshnode.cli.requests import Document, metadata_of
from meshnode.client.calls import model_path
from meshnode.client.infer import infer_call, infer_document, parse_route
from meshnode.client.tensors import encode_inputs
from meshnode.errors import PeerError

_MODEL: Final = "digits"
_NODES: Final = (("alpha", "eu-west"), ("beta", "us-east"), ("gamma", "ap-south"))
_REPLICAS: Final = 2
_CONNECTIONS: Final = 4  # enough that requests are under way at the moment of the kill
_HALF_S: Final = 2.0  # of the stream, before and after the kill
_MEMBERS_TIMEOUT_S: Final = 15.0
_READY_TIMEOUT_S: Final = 20.0
_DEAD_TIMEOUT_S: Final = 15.0  # several times what membership needs among three nodes
_HTTP_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Prediction:
    """One image's answer.

    Attributes:
        image: File name.
        predicted: The class that the model named.
        expected: The digit that was written.
        served_by: The node that ran the model.
        region: Its region.
    """

    image: str
    predicted: int
    expected: int
    served_by: str
    region: str


@dataclass(frozen=True, slots=True)
class _Sample:
    """An image as a request: JSON part and binary part in one body, and its headers."""

    image: str
    expected: int
    body: bytes
    headers: dict[str, str]


def demo(json: AsJson = False) -> None:
    """See it work: three nodes, a real model, one of them killed. Takes about 15 seconds."""
    started_s = time.monotonic()
    with Interrupts() as interrupts, DemoMesh(interrupts) as mesh:
        _say("Three daemons start, each in its own region:")
        for name, region in _NODES:
            _start(mesh, name, region)
        _await_members(mesh)
        model_file = _deploy(mesh)
        gateway, serving = _roles(mesh)
        metadata = gateway.client.get(model_path(_MODEL))
        samples = _samples(model_file.parent, metadata)
        _say(f"{len(samples)} images go to {gateway.name}, which does not serve the model.")
        predictions = [_predict(gateway, sample) for sample in samples]
        victim = _busiest(serving, predictions)
        load, dead_after_s = _kill_under_load(gateway, victim, samples[0])
        _say("Done; the daemons stop and their folder is removed.")
    figures = _figures(gateway, victim, predictions, load, dead_after_s)
    figures["took_s"] = round(time.monotonic() - started_s, 1)
    if json:
        print_json(figures)
    else:
        _print(figures, load)
    if load.failures or 2 * int(figures["correct"]) < len(predictions):
        raise typer.Exit(1)


def _say(text: str) -> None:
    typer.echo(plain(text), err=True)


def _start(mesh: DemoMesh, name: str, region: str) -> None:
    invite = None
    if mesh.nodes:
        invite = mesh.nodes[0].client.post("/mesh/v1/invites", {"ttl_s": 600})["invite"]
    node = mesh.start(name, region, invite=invite)
    how = "founds the mesh" if invite is None else "joins with an invite"
    _say(f"  {name} ({region}) {how}; gateway http://{node.http}")


def _await_members(mesh: DemoMesh) -> None:
    def complete() -> bool:
        return all(_alive(node) == len(mesh.nodes) for node in mesh.nodes)

    wait_until("every node sees the others", complete, _MEMBERS_TIMEOUT_S)
    _say(f"All {len(mesh.nodes)} see each other.")


def _alive(node: DemoNode) -> int:
    return sum(1 for it in node.client.get("/mesh/v1/nodes") if it["state"] == "alive")


def _deploy(mesh: DemoMesh) -> Path:
    """Deploy the digits model from the package's own files, and wait for its replicas."""
    model_file = Path(str(resources.files("meshnode.examples.digits") / "digits.onnx"))
    if not model_file.is_file():
        raise PeerError(f"{model_file} is missing; install meshnode as a whole")
    request = {"path": str(model_file), "name": _MODEL, "replicas": _REPLICAS, "on": []}
    mesh.nodes[0].client.post("/mesh/v1/deployments", request, timeout_s=_READY_TIMEOUT_S)

    def ready() -> bool:
        # Every node has to know, or the one that is asked next might not find them yet.
        return all(len(_serving(node)) == _REPLICAS for node in mesh.nodes)

    wait_until(f"{_MODEL} is served by {_REPLICAS} nodes", ready, _READY_TIMEOUT_S)
    _say(f"{_MODEL} is deployed; {' and '.join(sorted(_serving(mesh.nodes[0])))} serve it.")
    return model_file


def _serving(node: DemoNode) -> set[str]:
    """Return the names of the nodes that serve the model, as this node sees it."""
    entries = node.client.get("/mesh/v1/models")
    return {
        str(replica["node"])
        for entry in entries
        if entry["name"] == _MODEL
        for replica in entry["replicas"]
        if replica["state"] == "ready"
    }


def _roles(mesh: DemoMesh) -> tuple[DemoNode, list[DemoNode]]:
    """Return the node that does not serve the model, and those that do."""
    names = _serving(mesh.nodes[0])
    serving = [node for node in mesh.nodes if node.name in names]
    others = [node for node in mesh.nodes if node.name not in names]
    if len(others) != 1:
        raise PeerError(f"{_MODEL} is served by {sorted(names)}; two of three nodes were asked for")
    return others[0], serving


def _samples(folder: Path, metadata: Document) -> list[_Sample]:
    expected = json_codec.loads((folder / "expected.json").read_text(encoding="utf-8"))
    spec = metadata_of(metadata).inputs[0]
    samples = []
    for image, digit in sorted(expected.items()):
        picture = image_array((folder / image).read_bytes(), spec)
        encoded = encode_inputs({spec.name: picture}, _MODEL, None)
        call = infer_call(_MODEL, infer_document(encoded), encoded.buffers)
        message = call.message(_HTTP_TIMEOUT_S)
        body = b"".join(message.parts)
        samples.append(_Sample(Path(image).name, int(digit), body, dict(message.headers)))
    return samples


def _predict(gateway: DemoNode, sample: _Sample) -> Prediction:
    """Send one image to the gateway over plain HTTP, as any client would."""
    connection = http.client.HTTPConnection(*gateway.http, timeout=_HTTP_TIMEOUT_S)
    try:
        connection.request("POST", f"{model_path(_MODEL)}/infer", sample.body, sample.headers)
        response = connection.getresponse()
        content = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise PeerError(f"{gateway.name} did not answer for {sample.image}: {error}") from None
    finally:
        connection.close()
    if response.status != 200:
        raise PeerError(f"{gateway.name} answered {response.status}: {content.decode()[:500]}")
    route = parse_route(response.headers.get("Mesh-Route", ""))
    return Prediction(
        sample.image,
        _class_of(json_codec.loads(content)),
        sample.expected,
        route.node or "?",
        route.region or "?",
    )


def _class_of(response: Document) -> int:
    """Return the class that a classifier's response names: its integer label, or its maximum."""
    outputs = response["outputs"]
    for output in outputs:
        if output["datatype"].startswith(("INT", "UINT")):
            return int(output["data"][0])
    scores = outputs[0]["data"]
    return int(max(range(len(scores)), key=scores.__getitem__))


def _busiest(serving: list[DemoNode], predictions: list[Prediction]) -> DemoNode:
    """Return the serving node that answered most: its loss is the one that clients would feel."""
    counts = [it.served_by for it in predictions]
    return max(serving, key=lambda node: counts.count(node.name))


def _kill_under_load(
    gateway: DemoNode, victim: DemoNode, sample: _Sample
) -> tuple[LoadReport, float | None]:
    """Stream requests, kill a serving node in the middle, and measure.

    Returns:
        What the stream measured, and the seconds until membership called the node dead (None if
        it did not within the time the demo waits).
    """
    _say(f"Requests stream to {gateway.name} over {_CONNECTIONS} connections …")
    dead_after_s: float | None = None
    stream = RequestStream(
        gateway.http,
        f"{model_path(_MODEL)}/infer",
        sample.body,
        sample.headers,
        connections=_CONNECTIONS,
    )
    with ExitStack() as sending:
        sending.enter_context(stream)
        time.sleep(_HALF_S)
        kill_s = time.monotonic()
        victim.process.kill()
        _say(f"… {victim.name} is killed (SIGKILL) …")
        while time.monotonic() < kill_s + _HALF_S:
            dead_after_s = dead_after_s or _seconds_if_dead(gateway, victim, kill_s)
            time.sleep(0.05)
        sending.close()
        _say(f"… {len(stream.records)} requests sent.")
    while dead_after_s is None and time.monotonic() < kill_s + _DEAD_TIMEOUT_S:
        time.sleep(0.05)
        dead_after_s = _seconds_if_dead(gateway, victim, kill_s)
    return report(stream.records, kill_s), dead_after_s


def _seconds_if_dead(gateway: DemoNode, victim: DemoNode, kill_s: float) -> float | None:
    nodes = gateway.client.get("/mesh/v1/nodes")
    alive = any(it["name"] == victim.name and it["state"] in ("alive", "suspect") for it in nodes)
    return None if alive else time.monotonic() - kill_s


def _figures(
    gateway: DemoNode,
    victim: DemoNode,
    predictions: list[Prediction],
    load: LoadReport,
    dead_after_s: float | None,
) -> dict[str, Any]:
    def rounded(values: dict[str, float]) -> dict[str, float]:
        return {key: round(value, 2) for key, value in values.items()}

    return {
        "gateway": gateway.name,
        "predictions": [asdict(it) for it in predictions],
        "correct": sum(it.predicted == it.expected for it in predictions),
        "killed": victim.name,
        "requests": load.requests,
        "failed": len(load.failures),
        "failures": sorted(set(load.failures))[:5],
        "retried": load.retried,
        "latency": {
            "before": rounded(asdict(load.before)),
            "during": rounded(asdict(load.during)),
            "after": rounded(asdict(load.after)),
        },
        "dead_after_s": None if dead_after_s is None else round(dead_after_s, 2),
    }


def _print(figures: dict[str, Any], load: LoadReport) -> None:
    predictions = figures["predictions"]
    rows = [
        (it["image"], it["predicted"], it["expected"], f"{it['served_by']} ({it['region']})")
        for it in predictions
    ]
    typer.echo(f"\nAsked at {figures['gateway']}, which does not serve the model:\n")
    print_table(("IMAGE", "PREDICTED", "EXPECTED", "SERVED BY"), rows, empty="no images")
    wrong = len(predictions) - figures["correct"]
    verdict = "all right" if not wrong else f"{wrong} wrong: not every handwriting is clear"
    typer.echo(f"\n{figures['correct']} of {len(predictions)} digits, {verdict}.")
    typer.echo(
        f"\nA stream of requests to {figures['gateway']} while {figures['killed']}, "
        "which served it, is killed:\n"
    )
    parts = (
        ("before the kill", load.before),
        (f"the first {DURING_S:g} s after it", load.during),
        ("later", load.after),
    )
    rows_ms = [
        (name, it.requests, f"{it.p50_ms:.1f}", f"{it.p99_ms:.1f}", f"{it.max_ms:.1f}")
        for name, it in parts
    ]
    print_table(("", "REQUESTS", "P50 MS", "P99 MS", "MAX MS"), rows_ms, empty="")
    typer.echo(
        f"\n{figures['requests']} requests, {figures['failed']} failed; {figures['retried']} "
        "were answered by the other replica after the killed one had failed them."
    )
    for failure in figures["failures"]:
        typer.echo(f"  failed: {plain(failure)}")
    dead_after_s = figures["dead_after_s"]
    when = "not yet" if dead_after_s is None else f"after {dead_after_s:.1f} s"
    typer.echo(f"Membership called {figures['killed']} dead {when}; no client waited for that.")
    typer.echo(f"Took {figures['took_s']} s.")
