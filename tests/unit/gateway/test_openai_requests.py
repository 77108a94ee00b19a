"""What requests of OpenAI's API say, and what they are told."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from meshnode.errors import (
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    NoReplica,
    Saturated,
    Throttled,
    Unauthenticated,
)
from meshnode.gateway.protocols import (
    openai_requests,
)
from meshnode.gateway.protocols.http import HttpRequest, HttpResponse
from meshnode.gateway.protocols.openai_errors import OPENAI, WrongMember
from meshnode.gateway.protocols.openai_models import model_object
from meshnode.gateway.protocols.openai_requests import messages_of, model_of, read_wish, texts_of
from meshnode.gateway.protocols.openai_templates import Message, written
from meshnode.gateway.protocols.status import (
    HttpRefusal,
    error_response,
    failure_response,
    refusal_response,
)
from meshnode.models.provenance import Provenance
from meshnode.models.tasks import Offer, read_task

if TYPE_CHECKING:
    from meshnode.gateway.dispatch import Dispatcher

from tests.unit.gateway.text_gateway import Gateway, model, says


@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"n": 0}, "n"),
        ({"n": 2, "stream": True}, "n"),
        ({"best_of": 3}, "best_of"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": True}, "top_p"),
        ({"stop": [1]}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stream": 1}, "stream"),
        ({"tools": [{}]}, "tools"),
        ({"logit_bias": {"1": 2}}, "logit_bias"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"extra": {"a": 1}}, "extra"),
        ({"seed": 2**64}, "seed"),
        ({"seed": "abc"}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"top_k": True}, "top_k"),
        ({"logprobs": 0}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice"),
        ({"function_call": {"name": "f"}}, "function_call"),
        (
            {"stream": True, "stream_options": {"include_usage": "yes"}},
            "stream_options.include_usage",
        ),
        ({"x" * 5_000_000: {}}, "x" * 80),
    ],
)
def test_a_wrong_member_is_named(body: dict[str, Any], wrong: str) -> None:
    with pytest.raises(WrongMember) as raised:
        read_wish(body)
    assert raised.value.member == wrong


@pytest.mark.parametrize(
    ("member", "value", "shown"),
    [
        ("n", 0, "not 0"),
        ("max_tokens", 10**12, "not 1000000000000"),
        ("max_tokens", 10**4000, "not one of more than 64 bits"),
        ("max_tokens", "many", 'not "many"'),
        ("max_tokens", [], "not that"),
        ("seed", 1.5, "not 1.5"),
    ],
)
def test_a_wrong_number_is_shown(member: str, value: object, shown: str) -> None:
    with pytest.raises(WrongMember, match=shown):
        read_wish({member: value})


def test_what_asks_for_nothing_is_no_mistake() -> None:
    wish = read_wish(
        {"logprobs": False, "tool_choice": "auto", "stream": True}
        | {"stream_options": {"include_usage": None}}
    )
    assert not wish.include_usage


def test_a_name_that_no_model_can_have_is_not_said_again_in_full() -> None:
    with pytest.raises(ModelNotFound) as raised:
        model_of({"model": "x" * 1_000_000})
    assert len(str(raised.value)) < 300


def test_a_models_refusal_may_be_sent_back() -> None:
    said = {"role": "assistant", "content": None, "refusal": "no"}
    parts = {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}
    assert [message.content for message in messages_of({"messages": [said, parts]})] == ["no", "no"]


def test_members_about_nothing_here_are_dropped() -> None:
    wish = read_wish(
        {"user": "ann", "store": True, "metadata": {"a": "b"}, "tools": [{}], "tool_choice": "none"}
    )
    assert wish.parameters == {}


def test_too_many_parameters_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="at most 64 parameters"):
        read_wish({f"p{number}": 1 for number in range(65)})


@pytest.mark.parametrize(
    "messages",
    [
        None,
        [],
        "hi",
        ["hi"],
        [{"content": "hi"}],
        [{"role": "user"}],
        [{"role": "tool", "content": "x"}],
        [{"role": "user", "content": [{"type": "image_url"}]}],
        [{"role": "user", "content": [{"type": "text"}]}],
    ],
)
def test_what_is_no_conversation_is_refused(messages: Any) -> None:
    with pytest.raises(WrongMember) as raised:
        messages_of({} if messages is None else {"messages": messages})
    assert raised.value.member.startswith("messages")


def test_texts_of_a_message_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert messages_of({"messages": [{"role": "user", "content": parts}]}) == [
        Message("user", "ab")
    ]


def test_texts_and_tokens_are_told_apart() -> None:
    assert texts_of({"input": "a"}, "input") == ["a"]
    assert texts_of({"input": ["a", "b"]}, "input") == ["a", "b"]
    assert texts_of({"input": [1, 2]}, "input") == [[1, 2]]
    assert texts_of({"input": [[1], [2, 3]]}, "input") == [[1], [2, 3]]
    wrong: Any
    for wrong in (None, [], [[]], ["a", 1], [["a"]], {"a": 1}, ["a"] * 2049, [True]):
        with pytest.raises(WrongMember):
            texts_of({} if wrong is None else {"input": wrong}, "input")


async def test_bodies_that_are_no_requests_are_refused(gateway: Gateway) -> None:
    for body, sentence in (
        ([], "JSON object"),
        ({}, "provide a model"),
        ({"model": "a@b"}, "NAME@NUMBER"),
    ):
        with pytest.raises(InvalidRequest, match=sentence):
            await gateway.post("/v1/chat/completions", body)
    gateway.answers(model(), says("a"))
    with pytest.raises(WrongMember, match="one prompt"):
        await gateway.post(
            "/v1/completions", {"model": "writer", "prompt": ["a", "b"], "stream": True}
        )
    with pytest.raises(WrongMember, match="at most 2048 answers"):
        await gateway.post("/v1/completions", {"model": "writer", "prompt": ["a"] * 100, "n": 100})
    with pytest.raises(InvalidRequest, match="takes text, not the numbers"):
        await gateway.post("/v1/completions", {"model": "writer", "prompt": [1, 2]})


def test_conversations_are_written_in_the_forms_that_models_know() -> None:
    talk = [
        Message("system", "S"),
        Message("user", "{role}"),
        Message("assistant", "B"),
        Message("user", "C"),
    ]

    def form(text: str) -> str:
        return written(talk, Offer(read_task(text)))

    assert form("chat") == "system: S\nuser: {role}\nassistant: B\nuser: C\nassistant:"
    assert form("chat:template=last") == "C"
    assert form("chat:template=chatml").endswith(
        "<|im_start|>user\nC<|im_end|>\n<|im_start|>assistant\n"
    )
    assert form("chat:template=llama3").startswith("<|begin_of_text|><|start_header_id|>system")
    assert json.loads(form("chat:template=json"))[0] == {"role": "system", "content": "S"}
    assert (
        form("chat:turn=[{role}={content}],reply=>")
        == "[system=S][user={role}][assistant=B][user=C]>"
    )
    assert form("chat:reply=AI:").endswith("user: C\nAI:")
    assert written([Message("system", "S")], Offer(read_task("chat:template=last"))) == "S"


async def test_compressed_bodies_are_read(gateway: Gateway) -> None:
    gateway.answers(model(), says("a"))
    body = gzip.compress(b'{"model":"writer","prompt":"hi"}')
    http = HttpRequest("POST", "/v1/completions", "", {"content-encoding": "gzip"}, body)
    reply: Any = gateway.dispatcher.match("POST", http.path).answer(http, "r")
    assert (await reply).status == 200
    for wrong in (b"{", b"\xff", b"[" * 100_000):
        with pytest.raises(InvalidRequest, match="not JSON"):
            gateway.dispatcher.match("POST", http.path).answer(
                HttpRequest("POST", "/v1/completions", "", {}, wrong), "r"
            )


def test_conversations_and_tokens_have_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_requests, "MAX_TENSOR_ELEMENTS", 3)
    monkeypatch.setattr(openai_requests, "MAX_REQUEST_MESSAGES", 1)
    with pytest.raises(WrongMember, match="more than 3 tokens"):
        texts_of({"input": [[1, 2], [3, 4]]}, "input")
    with pytest.raises(WrongMember, match="at most 1 messages"):
        messages_of({"messages": [{"role": "user", "content": "a"}] * 2})


async def test_models_are_listed_with_their_tasks(gateway: Gateway) -> None:
    gateway.serve(what=model())
    gateway.serve()
    reply = gateway.dispatcher.match("GET", "/v1/models").answer(
        HttpRequest("GET", "/v1/models", "", {}), "r"
    )
    assert isinstance(reply, HttpResponse)
    listed = json.loads(bytes(reply.body))  # type: ignore[arg-type]
    assert listed["object"] == "list"
    assert [(each["id"], each["tasks"]) for each in listed["data"]] == [
        ("digits", []),
        ("writer", ["chat", "completion"]),
    ]


def test_a_model_says_who_published_it_and_when() -> None:
    assert model_object("m", None) == {
        "id": "m", "object": "model", "created": 0, "owned_by": "meshnode", "tasks": [],
    }  # fmt: skip
    manifest = msgspec.structs.replace(model(), provenance=Provenance("node", 17.9))
    found = model_object("m", manifest)
    assert (found["created"], found["owned_by"]) == (17, "node")


def test_errors_are_told_as_openai_tells_them() -> None:
    def told(error: Any) -> tuple[int, str, str | None, str | None]:
        response = error_response(error, OPENAI)
        assert isinstance(response.body, bytes)
        body = json.loads(response.body)["error"]
        assert body["message"]
        return response.status, body["type"], body["param"], body["code"]

    assert told(InvalidRequest("no")) == (400, "invalid_request_error", None, None)
    assert told(WrongMember("no", "n")) == (400, "invalid_request_error", "n", None)
    assert told(WrongMember("no", "n", unsupported=True))[3] == "unsupported_parameter"
    assert told(ModelNotFound("no")) == (404, "invalid_request_error", "model", "model_not_found")
    assert told(Unauthenticated("no")) == (401, "authentication_error", None, "invalid_api_key")
    assert told(Throttled("slow")) == (429, "rate_limit_error", None, "rate_limit_exceeded")
    assert told(Saturated("full")) == (429, "rate_limit_error", None, "rate_limit_exceeded")
    assert told(NoReplica("none")) == (503, "service_unavailable_error", None, "no_replica")
    assert told(DeadlineExceeded("late"))[:2] == (504, "timeout_error")
    assert error_response(Saturated("full"), OPENAI).headers["Retry-After"] == "1"
    refusal = refusal_response(HttpRefusal(405, "no"), OPENAI)
    assert b'"type":"invalid_request_error"' in refusal.body
    assert b'"type":"server_error"' in failure_response("r", OPENAI).body


def test_paths_below_v1_tell_errors_in_openais_form(dispatcher: Dispatcher) -> None:
    for path in ("/v1/models", "/v1/models/x", "/v1/nothing", "/v1/chat/completions"):
        assert dispatcher.error_form(path) is OPENAI
