"""A conversation as one text, for models that take one.

| template | |
|---|---|
| `lines` | `user: hello`, one message after the other, each on lines of its own, and `assistant:` at the end |
| `chatml` | `<|im_start|>user`, the message, `<|im_end|>`; ends with `<|im_start|>assistant` |
| `llama3` | Llama 3's headers |
| `last` | the last message of the user alone, for models that know no conversation |
| `json` | the messages themselves, as a JSON list of `{"role", "content"}` |

A template of one's own has a `turn`, made for each message, and a `reply`, which follows the last; both may
hold `{role}` and `{content}`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshnode.models.tasks import Offer


class Message(NamedTuple):
    """One message of a conversation."""

    role: str
    content: str


class _Template(NamedTuple):
    turn: str
    reply: str
    begin: str = ""


_TEMPLATES: Final = {
    "lines": _Template("{role}: {content}\n", "assistant:"),
    "chatml": _Template("<|im_start|>{role}\n{content}<|im_end|>\n", "<|im_start|>assistant\n"),
    "llama3": _Template(
        "<|start_header_id|>{role}<|end_header_id|>\n\n{content}<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|begin_of_text|>",
    ),
}


def written(messages: Sequence[Message], offer: Offer) -> str:
    """Return a conversation as the text that a model is given.

    Args:
        messages: At least one.
        offer: Its options name the template.
    """
    name = offer.option("template", "lines")
    if name == "last":
        asked = [message for message in messages if message.role == "user"]
        return (asked or messages)[-1].content
    if name == "json":
        return msgspec.json.encode([message._asdict() for message in messages]).decode()
    template = _TEMPLATES[name]
    turn, reply = offer.option("turn"), offer.option("reply")
    if turn:
        template = _Template(turn, reply)
    elif reply:
        template = template._replace(reply=reply)
    turns = "".join(_filled(template.turn, message) for message in messages)
    return f"{template.begin}{turns}{template.reply}"


def _filled(turn: str, message: Message) -> str:
    """Fill in a turn; what a message says is never looked at for placeholders."""
    pieces = turn.split("{content}")
    return message.content.join(piece.replace("{role}", message.role) for piece in pieces)
