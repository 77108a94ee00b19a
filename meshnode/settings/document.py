"""What the documentation says of settings, made from the tables: an example file, and rows."""

from __future__ import annotations

import textwrap
from itertools import groupby

from meshnode.membership.config import LAN, WAN
from meshnode.settings.fields import FIELDS, Field
from meshnode.settings.tuning import TABLE, explanations

_OFF = {"http": "--no-gateway", "grpc": "--no-grpc"}  # options that turn a setting off
_WIDTH = 88  # of the example's comments

_HEAD = """\
# Settings of this node. Every line that begins with a single '#' and a name is a setting that is
# not chosen: remove the '#' to choose it. `meshnode config check` finds mistakes, and
# `meshnode config show` tells what counts. Relative paths start from this file's folder.
"""


def default_of(field: Field) -> str:
    """Return a setting's default as people read it."""
    return field.default_text or field.kind.text(field.default)


def options_of(field: Field) -> str:
    """Return a setting's options as people type them, such as `--mdns`, `--no-mdns`."""
    spelled = [each for option in field.option for each in option.split("/")]
    if field.key in _OFF:
        spelled.append(_OFF[field.key])
    return ", ".join(
        f"`{each} {field.metavar}`" if field.metavar and each not in _OFF.values() else f"`{each}`"
        for each in spelled
    )


def panels() -> list[tuple[str, list[Field]]]:
    """Return the settings but those of membership, in their groups."""
    return [(name, list(each)) for name, each in groupby(FIELDS.values(), lambda it: it.panel)]


def membership_rows() -> list[tuple[str, str, str, str]]:
    """Return name, LAN value, WAN value and explanation of each setting of membership."""
    return [
        (name, f"{getattr(LAN, name):g}", f"{getattr(WAN, name):g}", said)
        for name, said in explanations().items()
    ]


def example() -> str:
    """Return a `config.toml` that explains every setting and chooses none."""
    parts = [_HEAD]
    for name, fields in panels():
        parts.append(f"# {name} {'-' * (_WIDTH - len(name))}\n")
        parts += [
            _commented(f"{field.meaning} Default: {default_of(field)}.")
            + f"#{field.key} = {field.example}\n"
            for field in fields
        ]
    parts.append(
        _commented("Single values of the profile. Every node of a mesh should have the same.")
        + f"[{TABLE}]\n"
        + "".join(f"#{name} = {getattr(LAN, name)}\n" for name in explanations())
    )
    return "\n".join(parts)


def _commented(text: str) -> str:
    return textwrap.indent(textwrap.fill(text, _WIDTH, break_on_hyphens=False), "# ") + "\n"
