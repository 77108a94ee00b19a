"""YAML as plain values, with the line of each: the core schema of YAML 1.2, and nothing that runs.

Unlike YAML 1.1, `on`, `yes` and `no` are words, not booleans, and `12:30` is no number. A key that is there twice, a
key that is no text, and a tag of somebody's own are mistakes, each told with its line. Aliases are followed, up to
`MAX_YAML_NODES` values altogether.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meshnode.limits import MAX_YAML_DEPTH, MAX_YAML_NODES, MAX_YAML_NUMBER_LENGTH

if TYPE_CHECKING:
    from collections.abc import Iterator

_TAG: Final = "tag:yaml.org,2002:"
_SHOWN: Final = 60  # characters of a wrong word that a message repeats
_CORE: Final = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
)  # plain words that are no texts, with what they begin with (YAML 1.2.2, section 10.3.2)


class Mistake(NamedTuple):
    """Something that cannot be read; the line counts from 1."""

    sentence: str
    line: int


class Document(NamedTuple):
    """One document of a text.

    Attributes:
        value: What it says.
        lines: The line of each value, by the keys and places that lead to it.
    """

    value: Any
    lines: dict[tuple[str | int, ...], int]


def read_yaml(text: str) -> tuple[list[Document], list[Mistake]]:
    """Return the documents of a text that say something, and every mistake that was found."""
    import yaml

    documents: list[Document] = []
    mistakes: list[Mistake] = []
    reader = _Reader(mistakes)
    try:
        for node in yaml.compose_all(text, Loader=_loader()):
            value = reader.value(node, ())
            if value is not None:
                documents.append(Document(value, reader.lines))
            reader = _Reader(mistakes, reader.count)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = (error.problem or error.context or "it breaks off").replace("\n", " ")
        mistakes.append(Mistake(f"this is not YAML: {problem}", 1 + mark.line if mark else 1))
    except (yaml.YAMLError, ValueError) as error:
        mistakes.append(Mistake(f"this is not YAML: {error!s:.200}".replace("\n", " "), 1))
    except RecursionError:
        mistakes.append(Mistake("this is not YAML that can be read: it is nested too deeply", 1))
    return documents, mistakes


def _loader() -> Any:
    """Return a loader of PyYAML that tells words from numbers as YAML 1.2 does."""
    import yaml

    # Its own resolvers, none of those of YAML 1.1.
    loader: Any = type("CoreLoader", (yaml.SafeLoader,), {"yaml_implicit_resolvers": {}})
    for kind, pattern, first in _CORE:
        loader.add_implicit_resolver(f"{_TAG}{kind}", re.compile(f"(?:{pattern})\\Z"), first)
    return loader


class _Reader:
    """Turns the nodes of one document into values."""

    def __init__(self, mistakes: list[Mistake], count: int = 0) -> None:
        self.mistakes = mistakes
        self.lines: dict[tuple[str | int, ...], int] = {}
        self.count = count

    def value(self, node: Any, place: tuple[str | int, ...]) -> Any:
        import yaml

        line = 1 + node.start_mark.line
        self.lines[place] = line
        self.count += 1
        if self.count > MAX_YAML_NODES or len(place) > MAX_YAML_DEPTH:
            if self.count != math.inf:
                what = (
                    "too many values"
                    if self.count > MAX_YAML_NODES
                    else "values too deep within each other"
                )
                self.mistakes.append(Mistake(f"this has {what}", line))
            self.count = math.inf  # type: ignore[assignment] # one mistake is enough
            return None
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, line)
        kind = "map" if isinstance(node, yaml.MappingNode) else "seq"
        if node.tag != f"{_TAG}{kind}":
            return self._wrong(f"the tag {node.tag[:_SHOWN]!r} is not known here", line)
        if kind == "seq":
            return [self.value(each, (*place, at)) for at, each in enumerate(node.value)]
        return dict(self._pairs(node, place))

    def _pairs(self, node: Any, place: tuple[str | int, ...]) -> Iterator[tuple[str, Any]]:
        seen: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = 1 + key_node.start_mark.line
            if getattr(key_node, "tag", "") != f"{_TAG}str" or not isinstance(key_node.value, str):
                self._wrong(
                    f"the key {str(key_node.value)[:_SHOWN]!r} is no text; put it into quotes", line
                )
                continue
            key = _paired(key_node.value)
            if key in seen:
                self._wrong(
                    f"the key {key[:_SHOWN]!r} is there twice, also in line {seen[key]}", line
                )
                continue
            seen[key] = line
            value = self.value(value_node, (*place, key))
            self.lines[*place, key] = line
            yield key, value

    def _scalar(self, node: Any, line: int) -> Any:
        text = _paired(node.value)
        match node.tag.removeprefix(_TAG):
            case "str":
                return text
            case "null" if re.fullmatch(_CORE[0][1], text):
                return None
            case "bool" if re.fullmatch(_CORE[1][1], text):
                return text.lower() == "true"
            case "int" if re.fullmatch(_CORE[2][1], text) and len(text) <= MAX_YAML_NUMBER_LENGTH:
                return int(text, 10 if text[:2] not in ("0o", "0x") else 0)
            case "float" if re.fullmatch(_CORE[3][1], text):
                return float(
                    text.replace(".inf", "inf")
                    .replace(".Inf", "inf")
                    .replace(".INF", "inf")
                    .replace(".nan", "nan")
                    .replace(".NaN", "nan")
                    .replace(".NAN", "nan")
                )
            case _:
                return self._wrong(
                    f"{text[:_SHOWN]!r} is not what its tag {node.tag[:_SHOWN]!r} says", line
                )

    def _wrong(self, sentence: str, line: int) -> None:
        self.mistakes.append(Mistake(sentence, line))


def _paired(text: str) -> str:
    """Return a text with the pairs of JSON's escapes of a character, such as an emoji, as that character."""
    if not any("\ud800" <= char <= "\udfff" for char in text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
