"""OpenAI's chat completions and completions: a text in, a text out, at once or as it is made.

    body ─> messages or prompt ─> one text (template) ─> the model's input
    parts ─> text ─> up to a stop text ─┬─> one document
                                        └─> a chunk per part, then `data: [DONE]`

**What a token is**, in `usage`: the model knows its tokens, and may say how many it read and wrote
(`meshnode.gateway.protocols.task_outputs`). Of a model that does not say, characters are counted (Unicode code
points), and `usage.unit` says so: `tokens`, or `characters`; it says `tokens` only if that is so of all answers of a
request. A prompt that is sent as token numbers is counted by them; if the model does not say how many it wrote, the unit
is `tokens and characters`, those of the prompts and those of the answers, and there is no `total_tokens`.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from meshnode.errors import TooLarge
from meshnode.gateway.protocols import openai_requests, task_inputs
from meshnode.gateway.protocols.dialect import Call, Enough
from meshnode.gateway.protocols.http import JSON_HEADERS, HttpResponse
from meshnode.gateway.protocols.openai_errors import WrongMember, told
from meshnode.gateway.protocols.openai_templates import written
from meshnode.gateway.protocols.stop_texts import StopTexts
from meshnode.gateway.protocols.task_outputs import TextReader, wanted_outputs
from meshnode.limits import MAX_BODY_BYTES, MAX_REQUEST_TEXTS, MODEL_CALL_TIMEOUT_S
from meshnode.models.exposure import Task
from meshnode.models.tasks import Offer, offer_of
from meshnode.types import InferRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from meshnode.errors import MeshError
    from meshnode.gateway.protocols.dialect import Asked
    from meshnode.gateway.protocols.openai_requests import Wish
    from meshnode.models.manifest import Manifest
    from meshnode.tracing import Trace
    from meshnode.types import InferResponse, ResponsePart

EVENT_HEADERS: Final[Mapping[str, str]] = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
}
_DONE: Final = b"data: [DONE]\n\n"


class _Words(NamedTuple):
    """What differs between the two."""

    id_prefix: str
    document: str
    chunk: str


_WORDS: Final = {
    Task.CHAT: _Words("chatcmpl-", "chat.completion", "chat.completion.chunk"),
    Task.COMPLETION: _Words("cmpl-", "text_completion", "text_completion"),
}


_MIXED: Final = "tokens and characters"


class TextForm(NamedTuple):
    """What the answer to one text is made of.

    Attributes:
        task: Chat or completion.
        id: Of the answer.
        model: As the caller named it.
        created_s: When, in whole seconds since the Unix epoch.
        offer: How the model carries out the task.
        wish: What the caller asked for besides.
        prompt_size: Characters of the text, or its tokens.
        prompt_unit: Which of them.
        begins_with: The prompt, if the answer is to repeat it.
    """

    task: Task
    id: str
    model: str
    created_s: int
    offer: Offer
    wish: Wish
    prompt_size: int
    prompt_unit: str
    begins_with: str = ""


class Used(NamedTuple):
    """The sizes of a prompt and of its answer."""

    prompt: int
    completion: int


class Choice(NamedTuple):
    """One answer, with what it used.

    Attributes:
        text: The answer.
        finish_reason: Why it ended.
        told: In tokens; None if they are not known.
        counted: In the unit `counted_in`, which is known always.
        counted_in: `characters`, or `tokens and characters`.
    """

    text: str
    finish_reason: str
    told: Used | None
    counted: Used
    counted_in: str


class Prompt(NamedTuple):
    """One request for the pipeline, and the form of its answer."""

    request: InferRequest
    form: TextForm


class TextDialect:
    """One of the two paths."""

    def __init__(self, task: Task, wall_s: Callable[[], float]) -> None:
        """Serve a task; `wall_s` returns seconds since the Unix epoch."""
        self._task = task
        self._wall_s = wall_s

    def __repr__(self) -> str:
        return f"<TextDialect {self._task}>"

    def decode(
        self, asked: Asked, manifest: Manifest, request_id: str, trace: Trace | None
    ) -> Call:
        """Return the inference for a request of one text and one choice."""
        (prompt,) = self.prompts(asked, manifest, request_id, trace)
        form = prompt.form
        stream = (lambda _response: Chunks(form)) if form.wish.stream else None
        return Call(prompt.request, form, stream, lambda _response: Whole(form))

    def encode(self, response: InferResponse, part: ResponsePart, form: TextForm) -> HttpResponse:
        """Return the answer of one part."""
        del response
        return document([choice_of(form, part)], form)

    def prompts(
        self, asked: Asked, manifest: Manifest, request_id: str, trace: Trace | None
    ) -> list[Prompt]:
        """Return an inference for each text and choice that a request asks for.

        Raises:
            InvalidRequest: if the request is malformed, or the model cannot take it.
        """
        body = asked.body
        wish = openai_requests.read_wish(body)
        offer = offer_of(manifest, self._task)
        texts: Sequence[Any]
        if self._task is Task.CHAT:
            messages = openai_requests.messages_of(body)
            texts = [written(messages, offer)]
            if offer.takes_documents and offer.option("template") == "json":
                texts = [[message._asdict() for message in messages]]
        else:
            texts = openai_requests.texts_of(body, "prompt")
        echo = self._task is Task.COMPLETION and openai_requests.echoes(body)
        form = TextForm(
            self._task, f"{_WORDS[self._task].id_prefix}{request_id}", body["model"],
            int(self._wall_s()), offer, wish, 0, "",
        )  # fmt: skip
        made: list[Prompt] = []
        for text in texts:
            inputs = task_inputs.one_input(
                manifest, offer, text, wish.parameters, stream=wish.stream
            )
            request = InferRequest(
                manifest.model, inputs, manifest.version, wanted_outputs(manifest, offer), request_id,
                task_inputs.parameters_for(offer, wish.parameters), MODEL_CALL_TIMEOUT_S, trace,
            )  # fmt: skip
            size, unit = _size(text)
            begins_with = text if echo and isinstance(text, str) else ""
            own = form._replace(prompt_size=size, prompt_unit=unit, begins_with=begins_with)
            made += [Prompt(request, own)] * wish.choices
        return made


def count_asked(body: openai_requests.Body, task: Task) -> int:
    """Return how many answers a request asks for: texts times choices.

    Raises:
        WrongMember: if it asks for none, or for more than one as a stream.
    """
    wish = openai_requests.read_wish(body)
    texts = 1 if task is Task.CHAT else len(openai_requests.texts_of(body, "prompt"))
    if wish.stream and texts > 1:
        raise WrongMember(
            "a stream answers one prompt: send several requests", "prompt", unsupported=True
        )
    if texts * wish.choices > MAX_REQUEST_TEXTS:
        raise WrongMember(f"a request asks for at most {MAX_REQUEST_TEXTS} answers", "n")
    return texts * wish.choices


class Whole:
    """Collects an answer of several parts. A `PartEncoder` whose document comes at the end."""

    headers: Mapping[str, str] = JSON_HEADERS

    def __init__(self, form: TextForm) -> None:
        """Collect for one text."""
        self._form = form
        self._reader = TextReader(form.model, form.offer)
        self._stop = StopTexts(form.wish.stop)
        self._pieces: list[str] = [form.begins_with]
        self._size = 0

    def __repr__(self) -> str:
        return f"<Whole {self._size} characters>"

    def part(self, part: ResponsePart) -> bytes:
        """Take a part."""
        self._add(self._stop.take(self._reader.read(part)))
        if self._stop.found:
            raise Enough
        return b""

    def end(self) -> bytes:
        """Return the document."""
        made = document([self.choice()], self._form)
        assert isinstance(made.body, bytes)
        return made.body

    def failed(self, error: MeshError) -> None:
        """Have no place for it: nothing was sent yet."""

    def choice(self) -> Choice:
        """Return the answer, which is complete."""
        if not self._stop.found:
            self._add(self._stop.take(self._reader.end()))
            self._add(self._stop.end())
        text = "".join(self._pieces)
        return _choice(self._form, self._reader, text, self._size, stopped=self._stop.found)

    def _add(self, text: str) -> None:
        self._pieces.append(text)
        self._size += len(text)
        if self._size > MAX_BODY_BYTES:
            raise TooLarge(f"the model's answer has more than {MAX_BODY_BYTES} characters")


class Chunks:
    """Sends an answer as it is made: one event for each part with text."""

    headers: Mapping[str, str] = EVENT_HEADERS

    def __init__(self, form: TextForm) -> None:
        """Send for one text."""
        self._form = form
        self._reader = TextReader(form.model, form.offer)
        self._stop = StopTexts(form.wish.stop)
        self._size = 0
        self._begun = False

    def __repr__(self) -> str:
        return f"<Chunks {self._size} characters>"

    def part(self, part: ResponsePart) -> bytes:
        """Return the event of a part; the first one is preceded by what begins the answer."""
        piece = self._begin() + self._text(self._stop.take(self._reader.read(part)))
        if self._stop.found:
            raise Enough(piece)
        return piece

    def end(self) -> bytes:
        """Return the last events: what was held back, why it ended, what was used, `[DONE]`."""
        rest = b""
        if not self._stop.found:
            last = self._stop.take(self._reader.end())
            rest = self._begin() + self._text(last + self._stop.end())
        choice = _choice(self._form, self._reader, "", self._size, stopped=self._stop.found)
        delta: dict[str, Any] = {"delta": {}} if self._form.task is Task.CHAT else {"text": ""}
        last_events = [rest, self._event([_numbered(delta, choice.finish_reason)])]
        if self._form.wish.include_usage:
            last_events.append(self._event([], _usage([choice])))
        return b"".join([*last_events, _DONE])

    def failed(self, error: MeshError) -> bytes:
        """Return the event that tells it; OpenAI's clients raise it, and `[DONE]` does not follow."""
        return _event(told(error))

    def _begin(self) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        if self._form.task is Task.CHAT:
            return self._event([_numbered({"delta": {"role": "assistant", "content": ""}}, None)])
        return self._shown(self._form.begins_with)

    def _text(self, text: str) -> bytes:
        self._size += len(text)
        return self._shown(text)

    def _shown(self, text: str) -> bytes:
        if not text:
            return b""
        chat = self._form.task is Task.CHAT
        return self._event(
            [_numbered({"delta": {"content": text}} if chat else {"text": text}, None)]
        )

    def _event(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> bytes:
        chunk = _head(self._form, _WORDS[self._form.task].chunk, choices)
        if self._form.wish.include_usage:
            chunk["usage"] = usage
        return _event(chunk)


def choice_of(form: TextForm, part: ResponsePart) -> Choice:
    """Return the answer that one part is."""
    whole = Whole(form)
    with suppress(Enough):
        whole.part(part)
    return whole.choice()


def document(choices: Sequence[Choice], form: TextForm) -> HttpResponse:
    """Return complete answers as one document."""
    made = [
        _numbered(
            {"message": {"role": "assistant", "content": choice.text, "refusal": None}}
            if form.task is Task.CHAT
            else {"text": choice.text},
            choice.finish_reason,
            index,
        )
        for index, choice in enumerate(choices)
    ]
    body = _head(form, _WORDS[form.task].document, made)
    body["usage"] = _usage(choices, form.wish.choices)
    return HttpResponse(200, JSON_HEADERS, msgspec.json.encode(body))


def _size(text: Any) -> tuple[int, str]:
    if isinstance(text, str):
        return len(text), "characters"
    if text and isinstance(text[0], dict):
        return sum(len(message["content"]) for message in text), "characters"
    return len(text), "tokens"


def _choice(form: TextForm, reader: TextReader, text: str, size: int, *, stopped: bool) -> Choice:
    limit = form.wish.max_tokens
    written_tokens = reader.completion_tokens
    reason = "stop" if stopped else reader.finish_reason
    if not reason:
        reason = "length" if limit and (written_tokens or 0) >= limit else "stop"
    prompt = reader.prompt_tokens
    if prompt is None and form.prompt_unit == "tokens":
        prompt = form.prompt_size
    told_sizes = None if prompt is None or written_tokens is None else Used(prompt, written_tokens)
    unit = _MIXED if form.prompt_unit == "tokens" else "characters"
    return Choice(text, reason, told_sizes, Used(form.prompt_size, size), unit)


def _usage(choices: Sequence[Choice], per_prompt: int = 1) -> dict[str, Any]:
    """Return what was used: a prompt counts once, however many answers it got."""
    used = [choice.told for choice in choices if choice.told is not None]
    unit = "tokens"
    if len(used) < len(choices):
        used, unit = [choice.counted for choice in choices], choices[0].counted_in
    prompt = sum(each.prompt for each in used[::per_prompt])
    completion = sum(each.completion for each in used)
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "unit": unit}
    if unit != _MIXED:  # tokens and characters have no sum
        usage["total_tokens"] = prompt + completion
    return usage


def _numbered(choice: dict[str, Any], finish_reason: str | None, index: int = 0) -> dict[str, Any]:
    return {"index": index, **choice, "logprobs": None, "finish_reason": finish_reason}


def _head(form: TextForm, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": form.id,
        "object": kind,
        "created": form.created_s,
        "model": form.model,
        "choices": choices,
    }


def _event(value: object) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"
