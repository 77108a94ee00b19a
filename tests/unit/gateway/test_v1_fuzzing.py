"""Whatever JSON comes to the paths below `/v1/`: it is answered, or refused as the caller's fault."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.errors import UsageError
from meshnode.gateway.protocols import openai_embeddings, openai_requests
from meshnode.gateway.protocols.dialect import Asked
from meshnode.gateway.protocols.http import HttpRequest
from meshnode.gateway.protocols.openai_text import TextDialect, count_asked
from meshnode.gateway.protocols.tfserving import VERBS, TensorFlowServing
from meshnode.models.exposure import Task
from meshnode.models.manifest import Manifest, TensorSpec, check_request
from meshnode.types import DataType

if TYPE_CHECKING:
    from collections.abc import Callable

TEXT = TensorSpec("text", DataType.BYTES, (-1, 1))
TOKENS = TensorSpec("input_ids", DataType.INT64, (-1, -1))
VECTOR = TensorSpec("vector", DataType.FP32, (-1, 4))
MODELS = [
    Manifest("m", 1, "python", "python", (inputs,), (outputs,), 8, (), "m.py")
    for inputs in (TEXT, TOKENS, VECTOR)
    for outputs in (TEXT, VECTOR)
]
MEMBERS = (
    "model", "messages", "prompt", "input", "stream", "stream_options", "n", "stop", "max_tokens", "temperature",
    "tools", "role", "content", "type", "text", "encoding_format", "dimensions", "echo", "seed", "response_format",
    "instances", "inputs", "examples", "context", "signature_name", "vector", "input_ids", "b64",
)  # fmt: skip
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=8),
    st.sampled_from(["m", "user", "text", "float", "base64", "serving_default", "AAAA"]),
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(MEMBERS), inner, max_size=4)
    ),
    max_leaves=12,
)
messages = st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": values}), max_size=2)
bodies = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(MEMBERS, values),
        "model": st.just("m"),
        "messages": messages | values,
        "input": st.lists(st.text(max_size=3) | st.integers(), max_size=3) | values,
        "prompt": st.text(max_size=3) | values,
    },
)


def asked(path: str, body: dict[str, Any]) -> Asked:
    http = HttpRequest("POST", path, "", {}, json.dumps(body).encode())
    return Asked(http, "m")


def openai(body: dict[str, Any], manifest: Manifest) -> None:
    request = asked("/v1/chat/completions", body)
    read = openai_requests.read_body(request.http)
    name, version = openai_requests.model_of(read)
    for task in (Task.CHAT, Task.COMPLETION):
        try:
            count_asked(read, task)
            made = TextDialect(task, lambda: 0.0).prompts(
                Asked(request.http, name, version, read), manifest, "id", None
            )
            for prompt in made:
                check_request(manifest, prompt.request)
        except UsageError:
            continue
    batches, _form = openai_embeddings.decode(
        Asked(request.http, name, version, read), manifest, "id", None
    )
    for batch in batches:
        check_request(manifest, batch.request)


def tensorflow_serving(body: dict[str, Any], manifest: Manifest) -> None:
    for verb in VERBS:
        try:
            call = TensorFlowServing(verb).decode(
                asked(f"/v1/models/m:{verb}", body), manifest, "id", None
            )
            check_request(manifest, call.request)
        except UsageError:
            continue


@pytest.mark.parametrize("ask", [openai, tensorflow_serving])
@given(body=bodies, manifest=st.sampled_from(MODELS))
def test_any_body_is_taken_or_refused(
    ask: Callable[[dict[str, Any], Manifest], None], body: dict[str, Any], manifest: Manifest
) -> None:
    with contextlib.suppress(UsageError):
        ask(body, manifest)
