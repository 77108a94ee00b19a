"""Faults in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from meshnode.sim.faults import NetworkFault

if TYPE_CHECKING:
    from meshnode.sim.faults import Fault

_ELSEWHERE: Final = frozenset({"at_s", "for_s", "nodes", "others", "region", "model"})


def fault_text(fault: Fault) -> str:
    """Return a fault in words, such as `partition region:eu-west from region:us-east (one_way)`."""
    whom = getattr(fault, "region", None) or getattr(fault, "model", None)
    if whom is None:
        whom = ", ".join(getattr(fault, "nodes", ()))
    if isinstance(fault, NetworkFault):
        whom += f" and {', '.join(fault.others) or 'all others'}"
    details = []
    for field in msgspec.structs.fields(type(fault)):
        value = getattr(fault, field.name)
        if field.name in _ELSEWHERE or value == field.default or value is None:
            continue
        if field.default_factory is dict and not value:
            continue
        if isinstance(value, dict):
            details.append(f"{field.name} {value.get('strategy', '')}".rstrip())
        elif value is True:
            details.append(field.name)
        else:
            number = f"{value:g}" if isinstance(value, float) else str(value)
            details.append(f"{field.name} {number}")
    return f"{fault.verb} {whom}" + (f" ({', '.join(details)})" if details else "")
