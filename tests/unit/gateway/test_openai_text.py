"""OpenAI's chat and completions, without a server."""

from __future__ import annotations

import json

import msgspec
import pytest

from meshnode.errors import (
    InferenceFailed,
    ModelNotFound,
    Saturated,
    TooLarge,
)
from meshnode.gateway.protocols import (
    openai_text,
)
from meshnode.gateway.protocols.openai_requests import Wish
from meshnode.gateway.protocols.openai_text import Chunks, TextDialect, TextForm, Whole
from meshnode.gateway.protocols.stop_texts import StopTexts
from meshnode.gateway.protocols.task_outputs import TextReader
from meshnode.models.execution import Interface
from meshnode.models.exposure import Task
from meshnode.models.http_calls import (
    HTTP_TENSORS,
    body_tensor,
    document_tensor,
)
from meshnode.models.manifest import TensorSpec
from meshnode.models.tasks import Offer, read_task
from meshnode.types import DataType, InferRequest, InferResponse, ResponsePart
from tests.unit.gateway.text_gateway import Gateway, content, documents, model, says


async def test_a_conversation_becomes_one_text_and_its_answer_one_document(
    gateway: Gateway,
) -> None:
    gateway.answers(model(), says("Hello."))
    answer = await gateway.chat("hi", temperature=0.5, max_tokens=9, top_k=3, user="ann")
    (request,) = gateway.asked
    assert content(request.inputs[0]) == b"user: hi\nassistant:"
    assert request.parameters == {"temperature": 0.5, "max_tokens": 9, "top_k": 3}
    assert request.outputs == ("text",)
    assert answer == {
        "id": "chatcmpl-r1",
        "object": "chat.completion",
        "created": 100,
        "model": "writer",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello.", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 19,
            "completion_tokens": 6,
            "total_tokens": 25,
            "unit": "characters",
        },
    }


async def test_an_answer_of_several_parts_is_joined_with_what_the_model_tells_of_it(
    gateway: Gateway,
) -> None:
    end = says(b"\xa9!", completion_tokens=2, finish_reason="length")
    gateway.answers(model(), says(b"Caf\xc3", prompt_tokens=4, completion_tokens=1), end)
    answer = await gateway.chat()
    assert answer["choices"][0]["message"]["content"] == "Caf\u00e9!"
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"] == {
        "prompt_tokens": 4,
        "completion_tokens": 2,
        "total_tokens": 6,
        "unit": "tokens",
    }


async def test_what_fails_before_the_end_of_a_joined_answer_is_an_error(gateway: Gateway) -> None:
    gateway.answers(model(), says("Hel"), InferenceFailed("out of memory"))
    with pytest.raises(InferenceFailed, match="out of memory"):
        await gateway.chat()


async def test_a_stream_begins_with_the_role_and_ends_with_reason_usage_and_done(
    gateway: Gateway,
) -> None:
    gateway.answers(model(), says("Hel"), says("lo"))
    *events, done = await gateway.chat(stream=True, stream_options={"include_usage": True})
    assert done == "[DONE]"
    deltas = [event["choices"][0]["delta"] for event in events[:-1]]
    assert deltas == [
        {"role": "assistant", "content": ""},
        {"content": "Hel"},
        {"content": "lo"},
        {},
    ]
    assert [event["choices"][0]["finish_reason"] for event in events[:-1]] == [None] * 3 + ["stop"]
    assert [event["usage"] for event in events[:-1]] == [None] * 4
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == 5
    assert {(event["id"], event["object"]) for event in events} == {
        ("chatcmpl-r1", "chat.completion.chunk")
    }


async def test_a_stream_that_breaks_off_ends_with_an_error_and_not_with_done(
    gateway: Gateway,
) -> None:
    gateway.answers(model(), says("Hel"), InferenceFailed("out of memory"))
    events = await gateway.chat(stream=True)
    assert events[-1] == {
        "error": {
            "message": "out of memory",
            "type": "server_error",
            "param": None,
            "code": "inference_failed",
        }
    }


async def test_what_fails_before_a_stream_begins_has_a_status(gateway: Gateway) -> None:
    gateway.answers(model(), Saturated("full"), says(""))
    with pytest.raises(Saturated):
        await gateway.chat(stream=True)


async def test_a_stop_text_ends_the_work_on_an_answer(gateway: Gateway) -> None:
    gateway.answers(model(), says("one E"), says("ND two"), says("three"))
    answer = await gateway.chat(stop="END")
    assert answer["choices"][0]["message"]["content"] == "one "
    assert gateway.closed == 1
    *events, done = await gateway.chat(stop=["END"], stream=True)
    assert "".join(e["choices"][0]["delta"].get("content", "") for e in events) == "one "
    assert done == "[DONE]"
    gateway.answers(model(), says("END"), says("x"))
    *events, done = await gateway.chat(stop="END", stream=True)
    assert [e["choices"][0]["finish_reason"] for e in events] == [None, "stop"]


async def test_what_only_looked_like_a_stop_text_is_sent_at_the_end(gateway: Gateway) -> None:
    gateway.answers(model(), says("one E"), says("N"))
    *events, _done = await gateway.chat(stop="END", stream=True)
    assert "".join(e["choices"][0]["delta"].get("content", "") for e in events) == "one EN"
    assert (await gateway.chat(stop="END"))["choices"][0]["message"]["content"] == "one EN"


async def test_prompts_times_choices_are_answered_in_order(gateway: Gateway) -> None:
    gateway.serve(what=model())

    async def behave(request: InferRequest) -> InferResponse:
        return InferResponse("writer", 1, says(content(request.inputs[0]).decode().upper()))

    gateway.local.behave = behave
    body = {"model": "writer", "prompt": ["a", "bc"], "n": 2, "echo": True}
    answer = await gateway.post("/v1/completions", body)
    assert [choice["text"] for choice in answer["choices"]] == ["aA", "aA", "bcBC", "bcBC"]
    assert answer["usage"]["prompt_tokens"] == 3
    assert answer["usage"]["completion_tokens"] == 6
    assert (answer["object"], answer["id"]) == ("text_completion", "cmpl-r1")


async def test_one_failure_of_several_answers_fails_the_request(gateway: Gateway) -> None:
    gateway.answers(model(), says("a"), InferenceFailed("out of memory"))
    with pytest.raises(InferenceFailed):
        await gateway.chat(n=3)


async def test_a_streamed_completion_begins_with_its_prompt_if_asked(gateway: Gateway) -> None:
    gateway.answers(model(), says("b"), says("c"))
    body = {"model": "writer", "prompt": "a", "echo": True, "stream": True}
    *events, _done = await gateway.post("/v1/completions", body)
    assert [event["choices"][0]["text"] for event in events] == ["a", "b", "c", ""]
    assert events[0]["object"] == "text_completion"


async def test_the_version_may_stand_after_the_name(gateway: Gateway) -> None:
    gateway.answers(model(), says("a"))
    body = {"model": "writer@1", "prompt": "a"}
    assert (await gateway.post("/v1/completions", body))["model"] == "writer@1"
    with pytest.raises(ModelNotFound):
        await gateway.post("/v1/completions", {**body, "model": "writer@7"})


async def test_a_model_of_documents_is_given_members_and_asked_for_one(gateway: Gateway) -> None:
    gateway.answers(
        documents("chat:input=q,output=a.0.b"),
        ResponsePart(
            (
                document_tensor(
                    "response",
                    b'{"a":[{"b":"yes"}],"usage":{"prompt_tokens":3,"completion_tokens":1}}',
                ),
            )
        ),
    )
    answer = await gateway.chat("hi", temperature=1, http_method="GET")
    assert gateway.asked[0].parameters == {}
    assert json.loads(content(gateway.asked[0].inputs[0])) == {
        "temperature": 1,
        "http_method": "GET",
        "q": "user: hi\nassistant:",
    }
    assert answer["choices"][0]["message"]["content"] == "yes"
    assert answer["usage"]["unit"] == "tokens"


@pytest.mark.parametrize("prompt", [["aaa", "bb"], ["bb", "aaa"]])
async def test_tokens_and_characters_are_never_added(gateway: Gateway, prompt: list[str]) -> None:
    gateway.serve(what=model())

    async def behave(request: InferRequest) -> InferResponse:
        told = {"prompt_tokens": 7, "completion_tokens": 1}
        is_told = content(request.inputs[0]) == b"aaa"
        return InferResponse("writer", 1, says("four", **(told if is_told else {})))

    gateway.local.behave = behave
    answer = await gateway.post("/v1/completions", {"model": "writer", "prompt": prompt})
    assert answer["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 8,
        "total_tokens": 13,
        "unit": "characters",
    }


async def test_prompts_of_tokens_count_the_tokens(gateway: Gateway) -> None:
    ids = TensorSpec("input_ids", DataType.INT64, (-1, -1))
    gateway.answers(model(ids), says("ab"))
    body = {"model": "writer", "prompt": [7, 8, 9]}
    assert (await gateway.post("/v1/completions", body))["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "unit": "tokens and characters",
    }
    gateway.answers(model(ids), says("ab", completion_tokens=1))
    usage = (await gateway.post("/v1/completions", body))["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["unit"]) == (3, 1, "tokens")


async def test_a_model_of_documents_may_take_the_messages_as_they_are(gateway: Gateway) -> None:
    data = b'{"reply":"yes"}'
    gateway.answers(
        documents("chat:input=messages,template=json"),
        ResponsePart((document_tensor("response", data[:5]),)),
        ResponsePart((document_tensor("response", data[5:]),)),
    )
    *events, _done = await gateway.chat("hi", stream=True, stream_options={"include_usage": True})
    assert json.loads(content(gateway.asked[0].inputs[0])) == {
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
    }
    assert [event["choices"][0]["delta"].get("content") for event in events[:-1]] == [
        "",
        "yes",
        None,
    ]
    assert events[-1]["usage"]["prompt_tokens"] == 2


async def test_a_model_with_routes_takes_documents_too(gateway: Gateway) -> None:
    manifest = documents("chat:output=reply")
    execution = msgspec.structs.replace(manifest.execution, interface=Interface.HTTP)
    manifest = msgspec.structs.replace(
        manifest, execution=execution, inputs=HTTP_TENSORS, outputs=HTTP_TENSORS
    )
    gateway.answers(manifest, ResponsePart((body_tensor(b'{"reply":"yes"}'),)))
    assert (await gateway.chat())["choices"][0]["message"]["content"] == "yes"
    assert bytes(gateway.asked[0].inputs[0].data) == b'{"text":"user: hi\\nassistant:"}'


def test_readers_say_what_they_are() -> None:
    offer = Offer(read_task("chat:output=text"))
    assert repr(TextReader("m", offer)) == "<TextReader of m: None tokens>"
    assert repr(StopTexts(["a"])) == "<StopTexts ('a',) holds 0 characters>"
    form = TextForm(Task.CHAT, "id", "m", 0, offer, Wish({}), 0, "")
    assert (repr(Whole(form)), repr(Chunks(form))) == (
        "<Whole 0 characters>",
        "<Chunks 0 characters>",
    )
    assert repr(TextDialect(Task.CHAT, lambda: 0.0)) == "<TextDialect chat>"
    Whole(form).failed(InferenceFailed("x"))


def test_an_answer_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_text, "MAX_BODY_BYTES", 3)
    whole = Whole(
        TextForm(Task.CHAT, "id", "m", 0, Offer(read_task("chat:output=text")), Wish({}), 0, "")
    )
    with pytest.raises(TooLarge, match="more than 3 characters"):
        whole.part(says("abcd"))
