"""Where a request may run, and how urgent it is, as its client says (docs/front-door.md, Hints)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Literal

from meshnode.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meshnode.client.calls import Call, Message

_HEADER: Final = re.compile(r"[\x21-\x7e]+(?: [\x21-\x7e]+)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hints:
    """What is said of where a request may run. The default says nothing.

    Attributes:
        region: Only there, and in the regions below it (`eu` is `eu-west`, too); empty for anywhere.
        prefer: Only that it should run in that region, not that it must.
        labels: Only on nodes with all of these labels.
        session: A word: requests with the same one go to the same replica while that is not much slower.
        priority: Of the lowest, requests are refused first when there are too many.
    """

    region: str = ""
    prefer: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    session: str = ""
    priority: Literal["low", "normal", "high"] = "normal"

    def headers(self) -> dict[str, str]:
        """Return it as headers of a request.

        Raises:
            InvalidRequest: if something cannot be a header; the gateway says what else is wrong.
        """
        labels = ",".join(f"{key}={value}" for key, value in self.labels.items())
        region = f"{self.region};prefer" if self.region and self.prefer else self.region
        priority = "" if self.priority == "normal" else self.priority
        found = {
            "Mesh-Region": region,
            "Mesh-Labels": labels,
            "Mesh-Session": self.session,
            "Mesh-Priority": priority,
        }
        for name, value in found.items():
            if value and not _HEADER.fullmatch(value):
                raise InvalidRequest(f"{name} must be printable ASCII, and is {value!r:.80}")
        return {name: value for name, value in found.items() if value}


def hinted(call: Call, hints: Hints | None) -> Call:
    """Return a call whose every try says where it may run; the call itself without hints.

    Raises:
        InvalidRequest: as `Hints.headers`.
    """
    headers = hints.headers() if hints is not None else {}
    if not headers:
        return call
    plain = call.message

    def message(remaining_s: float) -> Message:
        made = plain(remaining_s)
        return made._replace(headers={**headers, **made.headers})

    return replace(call, message=message)
