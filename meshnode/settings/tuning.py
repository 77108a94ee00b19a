"""The settings of membership, made from `MembershipConfig`: its fields are their single source."""

from __future__ import annotations

import dataclasses
import inspect
import re
from functools import cache
from typing import TYPE_CHECKING, Final

from meshnode.errors import ConfigError
from meshnode.limits import MAX_DATAGRAM_BYTES, MAX_MEMBERSHIP_COUNT, MAX_MEMBERSHIP_TIME_S
from meshnode.membership.config import LAN, WAN, MembershipConfig
from meshnode.settings.fields import MESH, Field
from meshnode.settings.kinds import Number

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meshnode.options import JoinOptions, Profile

TABLE: Final = "membership"
"""The TOML table that holds them."""

OPTION: Final = "--membership"
"""The option that sets one of them: `--membership NAME=VALUE`."""

PRESETS: Final[Mapping[Profile, MembershipConfig]] = {"lan": LAN, "wan": WAN}
"""What each profile stands for."""

_ATTRIBUTE = re.compile(r"^    (\w+): (.*?)(?=^    \w+: |\Z)", re.MULTILINE | re.DOTALL)
_SHORTEST_S = 0.001  # no timer of a loop is finer
_SMALLEST_PAYLOAD_BYTES = 256  # a leave must fit


@cache
def membership_fields() -> Mapping[str, Field]:
    """Return the settings of membership by key, such as `membership.probe_interval_s`."""
    explained = explanations()
    return {
        f"{TABLE}.{each.name}": Field(
            key=f"{TABLE}.{each.name}",
            kind=_kind(each.name),
            default=None,
            default_text="the profile's",
            option=(OPTION,),
            metavar="NAME=VALUE",
            panel=MESH,
            help="One value of the profile, such as probe_interval_s=2; repeatable.",
            meaning=explained.get(each.name, ""),
            unit=_unit(each.name),
            trade_off=explained.get(each.name, ""),
            sane=explained.get(each.name, ""),
            relation="Every node of a mesh should have the same value.",
            example=f"{getattr(LAN, each.name)}",
        )
        for each in dataclasses.fields(MembershipConfig)
    }


def explanations() -> Mapping[str, str]:
    """Return what `MembershipConfig` says of each field, on one line each."""
    text = inspect.getdoc(MembershipConfig) or ""
    attributes = text.partition("Attributes:\n")[2]
    return {name: " ".join(said.split()) for name, said in _ATTRIBUTE.findall(attributes)}


def membership_config(options: JoinOptions) -> MembershipConfig:
    """Return membership's settings: the profile's preset with the overrides.

    Raises:
        ConfigError: if they cannot work together.
    """
    return with_overrides(options.profile, options.membership)


def with_overrides(profile: Profile, overrides: Mapping[str, float]) -> MembershipConfig:
    """Return a preset with some of its fields replaced.

    Raises:
        ConfigError: if they cannot work together, or there is no such field.
    """
    try:
        return dataclasses.replace(PRESETS[profile], **overrides)  # type: ignore[arg-type]
    except TypeError:
        raise ConfigError(f"membership has no such fields: {', '.join(overrides)}") from None


def _kind(name: str) -> Number:
    whole = isinstance(getattr(LAN, name), int)
    if name == "max_payload_bytes":
        return Number(_SMALLEST_PAYLOAD_BYTES, MAX_DATAGRAM_BYTES, whole=True, unit="bytes")
    if name == "lifeguard":
        return Number(0, 1, whole=True)
    if name.endswith("_s"):
        return Number(_SHORTEST_S, MAX_MEMBERSHIP_TIME_S, whole=whole, unit="seconds")
    return Number(1, MAX_MEMBERSHIP_COUNT, whole=whole)


def _unit(name: str) -> str:
    unit = _kind(name).unit
    return unit or ("a factor" if name.endswith("multiplier") else "a count")
