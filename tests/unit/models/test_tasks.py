"""Tasks that models are offered for: how mappings are written, and what they resolve to."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.errors import InvalidRequest
from meshnode.limits import MAX_TASK_TEXT_LENGTH
from meshnode.models.execution import DEFAULT_EXECUTION, Interface
from meshnode.models.exposure import Exposure, Task, TaskMapping
from meshnode.models.http_calls import json_tensors
from meshnode.models.manifest import Manifest, TensorSpec
from meshnode.models.tasks import check_tasks, offer_of, offers, read_task, read_tasks, written
from meshnode.types import DataType

TEXT = TensorSpec("prompt", DataType.BYTES, (1,))
REPLY = TensorSpec("reply", DataType.BYTES, (1,))
TOKENS = TensorSpec("input_ids", DataType.INT64, (-1, -1))
VECTOR = TensorSpec("vector", DataType.FP32, (-1, 4))


def model(inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], *tasks: str) -> Manifest:
    exposure = Exposure(tasks=tuple(map(read_task, tasks)))
    return Manifest("m", 1, "python", "python", inputs, outputs, 0, (), "m.py", exposure=exposure)


def documents(*tasks: str) -> Manifest:
    execution = msgspec.structs.replace(DEFAULT_EXECUTION, interface=Interface.JSON)
    return msgspec.structs.replace(model(*json_tensors(), *tasks), execution=execution)


def test_a_mapping_is_read_with_its_names_and_options() -> None:
    assert read_task("chat") == TaskMapping(Task.CHAT)
    assert read_task(" embedding:output=v,input=t,pooling=first") == TaskMapping(
        Task.EMBEDDING, "t", "v", (("pooling", "first"),)
    )
    assert read_task(r"chat:turn={role}\, {content}\n,reply=a\;b\\") == TaskMapping(
        Task.CHAT, "", "", (("reply", "a;b\\"), ("turn", "{role}, {content}\n"))
    )


def test_several_mappings_are_separated_by_semicolons() -> None:
    assert [each.task for each in read_tasks("chat:reply=a\\;b; completion;")] == [
        "chat",
        "completion",
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("translate", "not a task; write chat, completion, embedding"),
        ("chat:prompt", "not a new KEY=VALUE"),
        ("chat:input=a,input=b", "not a new KEY=VALUE"),
        ("chat:color=red", "no option 'color'"),
        ("chat:template=html", "lines or chatml"),
        ("completion:pooling=mean", "no option 'pooling'"),
        ("chat:input=" + "x" * MAX_TASK_TEXT_LENGTH, "at most"),
        ("chat;chat", "at most one mapping"),
    ],
)
def test_what_is_no_mapping_is_refused_with_what_would_be(text: str, sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        read_tasks(text)


def test_options_are_checked_wherever_a_mapping_comes_from() -> None:
    with pytest.raises(InvalidRequest, match="no option 'x'"):
        check_tasks((TaskMapping(Task.CHAT, "", "", (("x", "y"),)),))
    with pytest.raises(InvalidRequest, match="at most"):
        check_tasks((TaskMapping(Task.CHAT, "x" * (MAX_TASK_TEXT_LENGTH + 1)),))


@given(st.text(max_size=40), st.text(max_size=40), st.text(max_size=40), st.text(max_size=40))
def test_what_is_written_is_read_again(name: str, output: str, turn: str, reply: str) -> None:
    options = tuple((key, text) for key, text in (("reply", reply), ("turn", turn)) if text)
    mapping = TaskMapping(Task.CHAT, name, output, options)
    text = f"{written(mapping)};completion"
    assert read_tasks(text) == (mapping, TaskMapping(Task.COMPLETION))


def test_a_model_that_can_only_mean_one_thing_needs_no_mapping() -> None:
    assert offers(model((TEXT,), (REPLY,))) == (Task.CHAT, Task.COMPLETION)
    assert offers(model((TEXT,), (VECTOR,))) == (Task.EMBEDDING,)
    assert offers(model((VECTOR,), (VECTOR,))) == ()
    offer = offer_of(model((TEXT, VECTOR), (REPLY, VECTOR)), Task.COMPLETION)
    assert (offer.mapping.text_input, offer.mapping.output) == ("prompt", "reply")


def test_models_of_tokens_continue_and_give_vectors_but_do_not_chat() -> None:
    manifest = model((TOKENS,), (VECTOR,))
    offer = offer_of(manifest, Task.EMBEDDING)
    assert (offer.mapping.text_input, offer.takes_tokens) == ("input_ids", True)
    assert Task.CHAT not in offers(model((TOKENS,), (REPLY,)))


def test_of_several_texts_the_usual_name_is_taken() -> None:
    other = TensorSpec("other", DataType.BYTES, (1,))
    offer = offer_of(model((other, TEXT), (REPLY,)), Task.CHAT)
    assert offer.mapping.text_input == "prompt"
    usual = TensorSpec("text_output", DataType.BYTES, (1,))
    assert offer_of(model((TEXT,), (other, usual)), Task.CHAT).mapping.output == "text_output"
    named = model((TEXT, other), (REPLY, other), "chat:input=other,output=other")
    assert offer_of(named, Task.CHAT).mapping == TaskMapping(Task.CHAT, "other", "other")
    with pytest.raises(InvalidRequest, match="an output of text"):
        offer_of(model((TEXT,), (VECTOR,)), Task.CHAT)
    with pytest.raises(InvalidRequest, match="--task chat:input=NAME"):
        offer_of(model((other, REPLY), (REPLY,)), Task.CHAT)


def test_an_explicit_mapping_leaves_nothing_else_on_offer() -> None:
    manifest = model((TEXT,), (REPLY,), "completion")
    assert offers(manifest) == (Task.COMPLETION,)
    with pytest.raises(InvalidRequest, match="not offered for chat, but for completion"):
        offer_of(manifest, Task.CHAT)


def test_a_mapping_to_what_is_not_there_is_refused_with_what_is() -> None:
    with pytest.raises(InvalidRequest, match=r"prompt BYTES \[1\]"):
        offer_of(model((TEXT,), (REPLY,), "chat:input=text"), Task.CHAT)
    with pytest.raises(InvalidRequest, match="outputs of BF16 or FP16"):
        offer_of(model((TEXT,), (REPLY,), "embedding:output=reply"), Task.EMBEDDING)


def test_models_of_documents_are_offered_only_as_their_mapping_says() -> None:
    assert offers(documents()) == ()
    with pytest.raises(InvalidRequest, match="--task chat:input=MEMBER"):
        offer_of(documents(), Task.CHAT)
    offer = offer_of(documents("chat:output=reply"), Task.CHAT)
    assert offer.takes_documents
    assert (offer.mapping.text_input, offer.mapping.output) == ("text", "reply")
    assert (offer.option("template", "lines"), offer.option("none")) == ("lines", "")
