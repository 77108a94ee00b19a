r"""How a model's own inputs and outputs serve a task: chat, completion, embedding.

A mapping is written as `TASK[:key=value,...]`, on the command line, in a deployment and in `config.pbtxt` alike::

    chat                                        what is left out is found where it is unambiguous
    chat:input=prompt,output=reply,template=chatml
    embedding:input=text,pooling=mean,normalize=true
    chat:turn=<{role}>{content}\n,reply=<assistant>       `\n`, `\,`, `\;` and `\\` stand for themselves

Several mappings in one text are separated by `;`.

| task | options | |
|---|---|---|
| chat | `template` | how messages become one text: `lines` (the default), `chatml`, `llama3`, `last`, `json` |
| chat | `turn`, `reply` | a template of one's own: what each message becomes, and what follows the last |
| chat, completion | `parts` | what each part of a stream has: only what is new (`new`, the default) or all so far (`all`) |
| embedding | `pooling` | how vectors per token become one: `mean` (the default), `first`, `last` |
| embedding | `normalize` | `true`: vectors are scaled to length 1 |

A tensor model whose mapping nobody gave is offered for what it can only mean: one BYTES input and one BYTES
output are chat and completion, one BYTES input and one output of floats are an embedding. A model that takes JSON
documents is offered for nothing unless its mapping says so: `input` and `output` are then members of the documents.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from meshnode.errors import InvalidRequest
from meshnode.limits import MAX_TASK_TEXT_LENGTH, MAX_TASKS
from meshnode.models.execution import Interface
from meshnode.models.exposure import Task, TaskMapping
from meshnode.types import DataType

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshnode.models.manifest import Manifest, TensorSpec

TEMPLATES: Final = ("lines", "chatml", "llama3", "last", "json")
"""Names of the built-in ways to write messages as one text."""

_ANY: Final[tuple[str, ...]] = ()
_OPTIONS: Final[dict[Task, dict[str, tuple[str, ...]]]] = {
    Task.CHAT: {"template": TEMPLATES, "turn": _ANY, "reply": _ANY, "parts": ("new", "all")},
    Task.COMPLETION: {"parts": ("new", "all")},
    Task.EMBEDDING: {"pooling": ("mean", "first", "last"), "normalize": ("true", "false")},
}
"""Options of each task, with the values that they may have; none: any text."""

_FLOATS: Final = frozenset({DataType.FP16, DataType.BF16, DataType.FP32, DataType.FP64})
_TOKENS: Final = frozenset({DataType.INT32, DataType.INT64})
_INPUT_NAMES: Final = ("text_input", "prompt", "text", "input_ids")
_OUTPUT_NAMES: Final = ("text_output", "generated_text", "text", "sentence_embedding", "embedding")
_SPECIAL: Final = {"n": "\n", ",": ",", ";": ";", "\\": "\\"}
_JSON_INPUT: Final = (
    "text"  # the member of a document that takes the text, unless a mapping names it
)


class Offer(NamedTuple):
    """A task as one model version carries it out.

    Attributes:
        mapping: With the names of input and output filled in; the output of a model that takes JSON may be
            empty: what its document has.
        takes_documents: Whether it takes JSON documents, and not tensors.
        takes_tokens: Whether its input is made of token numbers, not of text.
    """

    mapping: TaskMapping
    takes_documents: bool = False
    takes_tokens: bool = False

    def option(self, name: str, default: str = "") -> str:
        """Return the value of an option."""
        return next((value for key, value in self.mapping.options if key == name), default)


def read_tasks(text: str) -> tuple[TaskMapping, ...]:
    """Read mappings that are separated by `;`.

    Raises:
        InvalidRequest: if one is malformed, or two are of the same task.
    """
    mappings = tuple(read_task(each) for each in _split(text, ";") if each.strip())
    return check_tasks(mappings)


def read_task(text: str) -> TaskMapping:
    """Read `TASK[:key=value,...]`.

    Raises:
        InvalidRequest: saying what was expected.
    """
    if len(text) > MAX_TASK_TEXT_LENGTH:
        raise InvalidRequest(f"a task's mapping has at most {MAX_TASK_TEXT_LENGTH} characters")
    name, _, rest = text.partition(":")
    try:
        task = Task(name.strip())
    except ValueError:
        raise InvalidRequest(
            f"{name[:40]!r} is not a task; write {', '.join(Task)}, and perhaps what it maps: "
            "chat:input=NAME,output=NAME"
        ) from None
    found: dict[str, str] = {}
    for pair in _split(rest, ",") if rest else []:
        key, equals, value = pair.partition("=")
        key = key.strip()
        if not equals or key in found:
            raise InvalidRequest(
                f"{pair[:40]!r} in the mapping of task {name!r} is not a new KEY=VALUE"
            )
        found[key] = _plain(value)
    text_input, output = found.pop("input", ""), found.pop("output", "")
    return check_mapping(TaskMapping(task, text_input, output, tuple(sorted(found.items()))))


def written(mapping: TaskMapping) -> str:
    """Return a mapping as `read_task` reads it."""
    pairs = [("input", mapping.text_input), ("output", mapping.output), *mapping.options]
    text = ",".join(f"{key}={_escaped(value)}" for key, value in pairs if value)
    return f"{mapping.task}:{text}" if text else str(mapping.task)


def check_tasks(mappings: tuple[TaskMapping, ...]) -> tuple[TaskMapping, ...]:
    """Return the mappings of one model if they can be together.

    Raises:
        InvalidRequest: if one is wrong, or a task is mapped twice.
    """
    if len(mappings) > MAX_TASKS or len({each.task for each in mappings}) != len(mappings):
        raise InvalidRequest("a model has at most one mapping for each task")
    for mapping in mappings:
        check_mapping(mapping)
    return mappings


def check_mapping(mapping: TaskMapping) -> TaskMapping:
    """Return a mapping if its options are known and their values possible.

    Raises:
        InvalidRequest: naming the option, and what it may be.
    """
    known = _OPTIONS[mapping.task]
    texts = [
        mapping.text_input,
        mapping.output,
        *(text for pair in mapping.options for text in pair),
    ]
    if sum(map(len, texts)) > MAX_TASK_TEXT_LENGTH:
        raise InvalidRequest(f"a task's mapping has at most {MAX_TASK_TEXT_LENGTH} characters")
    for name, value in mapping.options:
        if name not in known:
            raise InvalidRequest(
                f"task {mapping.task} has no option {name[:40]!r}; it has input, output, {', '.join(known)}"
            )
        if known[name] and value not in known[name]:
            raise InvalidRequest(
                f"option {name} of task {mapping.task} is {' or '.join(known[name])}, not {value[:40]!r}"
            )
    return mapping


def offers(manifest: Manifest) -> tuple[Task, ...]:
    """Return the tasks that a model version can be asked for."""
    found = []
    for task in Task:
        try:
            offer_of(manifest, task)
        except InvalidRequest:
            continue
        found.append(task)
    return tuple(found)


def offer_of(manifest: Manifest, task: Task) -> Offer:
    """Return how a model version carries out a task.

    Raises:
        InvalidRequest: if it is not offered for it, or what maps it is not clear; says what to do.
    """
    mappings = manifest.exposure.tasks
    mapping = next((each for each in mappings if each.task is task), None)
    if mapping is None and mappings:
        others = ", ".join(each.task for each in mappings)
        raise InvalidRequest(
            f"model {manifest.model!r} is not offered for {task}, but for {others}"
        )
    if manifest.execution.interface is not Interface.TENSORS:
        if mapping is None:
            raise InvalidRequest(
                f"model {manifest.model!r} takes JSON documents, and its deployment does not say how they carry a "
                f"{task}: deploy it with --task {task}:input=MEMBER,output=MEMBER"
            )
        filled = TaskMapping(
            task, mapping.text_input or _JSON_INPUT, mapping.output, mapping.options
        )
        return Offer(filled, takes_documents=True)
    wanted = mapping or TaskMapping(task)
    taking = _input(manifest, wanted)
    giving = _output(manifest, wanted)
    filled = TaskMapping(task, taking.name, giving.name, wanted.options)
    return Offer(filled, takes_tokens=taking.datatype is not DataType.BYTES)


def _input(manifest: Manifest, mapping: TaskMapping) -> TensorSpec:
    specs = manifest.inputs
    kinds = {DataType.BYTES} | (_TOKENS if mapping.task is not Task.CHAT else frozenset())
    if mapping.text_input:
        return _named(manifest, specs, mapping.text_input, kinds, "input")
    for wanted in ({DataType.BYTES}, kinds):
        found = [spec for spec in specs if spec.datatype in wanted]
        if len(found) > 1:
            found = [spec for spec in found if spec.name == _first_of(_INPUT_NAMES, found)]
        if len(found) == 1:
            return found[0]
    raise _unclear(manifest, mapping, "an input that takes text", specs, "input")


def _output(manifest: Manifest, mapping: TaskMapping) -> TensorSpec:
    specs = manifest.outputs
    kinds = _FLOATS if mapping.task is Task.EMBEDDING else frozenset({DataType.BYTES})
    if mapping.output:
        return _named(manifest, specs, mapping.output, kinds, "output")
    found = [spec for spec in specs if spec.datatype in kinds]
    if len(found) > 1:
        found = [spec for spec in found if spec.name == _first_of(_OUTPUT_NAMES, found)]
    if len(found) == 1:
        return found[0]
    what = "an output of floats" if mapping.task is Task.EMBEDDING else "an output of text"
    raise _unclear(manifest, mapping, what, specs, "output")


def _first_of(names: Sequence[str], specs: Sequence[TensorSpec]) -> str:
    known = {spec.name for spec in specs}
    return next((name for name in names if name in known), "")


def _named(
    manifest: Manifest,
    specs: Sequence[TensorSpec],
    name: str,
    kinds: frozenset[DataType] | set[DataType],
    kind: str,
) -> TensorSpec:
    spec = next((spec for spec in specs if spec.name == name), None)
    if spec is None or spec.datatype not in kinds:
        raise InvalidRequest(
            f"the deployment of model {manifest.model!r} maps the {kind} {name!r}, which is not one of its {kind}s of "
            f"{' or '.join(sorted(kinds))}: {_shown(specs)}"
        )
    return spec


def _unclear(
    manifest: Manifest, mapping: TaskMapping, what: str, specs: Sequence[TensorSpec], kind: str
) -> InvalidRequest:
    return InvalidRequest(
        f"model {manifest.model!r} cannot be asked for {mapping.task}: it takes {what}, and which of its {kind}s that is "
        f"({_shown(specs)}) is not clear; deploy it with --task {mapping.task}:{kind}=NAME if there is one"
    )


def _shown(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{spec.name} {spec.datatype} {list(spec.shape)}" for spec in specs)


def _split(text: str, separator: str) -> list[str]:
    """Split at a separator that has no backslash before it."""
    return re.findall(rf"(?:[^{separator}\\]|\\.|\\$)+", text, re.DOTALL)


def _plain(text: str) -> str:
    return re.sub(r"\\(.)", lambda found: _SPECIAL.get(found[1], found[0]), text, flags=re.DOTALL)


def _escaped(text: str) -> str:
    return re.sub(r"[\\,;\n]", lambda found: "\\n" if found[0] == "\n" else f"\\{found[0]}", text)
