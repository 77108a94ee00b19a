"""`meshnode infer` for models that take documents: what is given goes to `/inference/NAME`, as any client would send it.

| given | sent |
|---|---|
| a file of JSON | as it is |
| another file | as it is, under its media type |
| `NAME=VALUE` | a JSON document; values are JSON where they can be, texts otherwise |
| `NAME=@FILE` among them | a form |

`--output FILE` asks for the media type that the file's name tells, and writes what comes.
"""

import json
import mimetypes
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import typer

from meshnode.cli.inputs import Given
from meshnode.cli.output import plain
from meshnode.client.calls import Call, Message, Reply, ask
from meshnode.client.hints import Hints, hinted
from meshnode.client.mesh import MeshClient
from meshnode.errors import ConfigError, InvalidRequest
from meshnode.models.http_calls import BODY, REQUEST, RESPONSE
from meshnode.models.media_types import EVENTS, JSON, by_ending, sniffed

_UNKNOWN = "application/octet-stream"
_FORM_NAMES = str.maketrans({'"': "%22", "\r": "%0D", "\n": "%0A"})


def takes_documents(metadata: Any) -> bool:
    """Whether a model takes documents rather than tensors, as its metadata says."""
    names = [[spec["name"] for spec in metadata.get(key, ())] for key in ("inputs", "outputs")]
    return names in ([[REQUEST], [RESPONSE]], [[BODY], [BODY]])


def describe(name: str) -> str:
    """Return how such a model is asked."""
    return (
        f"{plain(name)} takes a document, or files where it says so; for example:\n\n"
        f"  meshnode infer {plain(name)} NAME=VALUE NAME=@FILE ...\n"
        f"  meshnode infer {plain(name)} FILE [--output FILE]\n\n"
        "What it knows is told by its author, and at /docs of a gateway."
    )


def send(
    client: MeshClient,
    name: str,
    given: Sequence[Given],
    output: str,
    timeout_s: float,
    hints: Hints,
) -> Reply:
    """Ask a model with what was given.

    Args:
        client: Asks.
        name: The model's.
        given: What was given.
        output: The file that the answer is for; empty for none.
        timeout_s: How long to wait.
        hints: Where it may run.

    Raises:
        ConfigError: if the answer is for a file whose name does not tell what it is to be.
        MeshError: as any request.
    """
    accept = ""
    if output:
        accept = JSON if output.endswith(".json") else by_ending(output) or _guessed(output)
        if not accept:
            raise ConfigError(
                f"--output {output!r} does not tell by its ending what the answer is to be; such as .json or .png"
            )
    content_type, parts = body_of(given)
    headers = {"Content-Type": content_type, **({"Accept": accept} if accept else {})}
    path = f"/inference/{quote(name, safe='')}"
    call = hinted(Call("POST", path, lambda _remaining_s: Message(headers, parts)), hints)
    return client.run(ask(call), timeout_s=timeout_s)


def body_of(given: Sequence[Given]) -> tuple[str, tuple[bytes, ...]]:
    """Return the Content-Type and the body for what was given.

    Raises:
        InvalidRequest: if something is given twice.
    """
    if len(given) == 1 and not given[0].name:
        (alone,) = given
        is_json = not sniffed(alone.content) and _is_json(alone.content)
        kind = (
            JSON
            if is_json
            else sniffed(alone.content) or by_ending(alone.label) or _guessed(alone.label)
        )
        return kind or _UNKNOWN, (alone.content,)
    names = [each.name for each in given]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InvalidRequest(f"{twice!r} is given twice")
    if all(each.text is not None for each in given):
        document = {each.name: _value(each.text or "") for each in given}
        return JSON, (json.dumps(document).encode(),)
    mark = secrets.token_hex(16)
    parts: list[bytes] = []
    for each in given:
        head = (
            f'--{mark}\r\nContent-Disposition: form-data; name="{each.name.translate(_FORM_NAMES)}"'
        )
        if each.text is None:
            file = Path(each.label.partition("=@")[2]).name.translate(_FORM_NAMES)
            kind = sniffed(each.content) or by_ending(file) or _guessed(file) or _UNKNOWN
            head += f'; filename="{file}"\r\nContent-Type: {kind}'
        content = each.content if each.text is None else each.text.encode()
        parts += [f"{head}\r\n\r\n".encode(), content, b"\r\n"]
    return f"multipart/form-data; boundary={mark}", (*parts, f"--{mark}--\r\n".encode())


def show(reply: Reply, *, as_json: bool) -> None:
    """Print an answer: JSON readably, texts and streams as they came; of other files only what they are."""
    kind = reply.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == JSON and not as_json:
        _echo(json.dumps(reply.document(), indent=2, ensure_ascii=False))
    elif kind.startswith("text/") or kind in (JSON, EVENTS) or kind.endswith("json"):
        _echo(bytes(reply.body).decode("utf-8", "replace").rstrip("\n"))
    else:
        typer.echo(
            f"{len(reply.body)} bytes of {plain(kind or _UNKNOWN)}; write them with --output FILE"
        )


def write(place: Path, reply: Reply) -> None:
    """Write an answer's content to a file.

    Raises:
        ConfigError: if that cannot be.
    """
    try:
        place.write_bytes(reply.body)
    except OSError as error:
        raise ConfigError(f"{str(place)!r} cannot be written: {error.strerror}") from None


def _echo(text: str) -> None:
    typer.echo("\n".join(plain(line) for line in text.split("\n")))


def _guessed(name: str) -> str:
    return mimetypes.guess_type(name)[0] or ""


def _is_json(content: bytes) -> bool:
    try:
        json.loads(content)
    except (ValueError, RecursionError):
        return False
    return True


def _value(text: str) -> object:
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value
