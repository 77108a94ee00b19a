"""Environment variables that a deployment sets for its models' code.

They are of the deployment, not of the model, but whoever runs the model needs them, and a change of them needs a new
process as a change of the files does. So on its way to the process a manifest carries them among its settings
(`with_variables`), which also makes its digest another one: the ordinary replacement of a version's files then brings
a change to one node after the other. What others are told of a replica is without them (`without_variables`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec import structs

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meshnode.models.manifest import Manifest

TAKING_RUNTIMES: Final = frozenset({"python", "torch"})
"""Runtimes whose models are code, or run in a process of their own that code is loaded into."""

_PREFIX: Final = "meshnode\0env\0"
"""Of the settings that hold them. No configuration can name one: texts there have no NUL."""

Variables = tuple[tuple[str, str], ...]


def with_variables(manifest: Manifest, variables: Variables) -> Manifest:
    """Return a manifest whose code sees these variables; as it is, if it has no code or there are none."""
    if not variables or manifest.runtime not in TAKING_RUNTIMES:
        return manifest
    added = tuple((_PREFIX + name, value) for name, value in variables)
    execution = structs.replace(
        manifest.execution, parameters=(*manifest.execution.parameters, *added)
    )
    return structs.replace(manifest, execution=execution)


def without_variables(manifest: Manifest) -> Manifest:
    """Return a manifest as it was published."""
    parameters = manifest.execution.parameters
    plain = model_parameters(parameters)
    if len(plain) == len(parameters):
        return manifest
    return structs.replace(
        manifest, execution=structs.replace(manifest.execution, parameters=plain)
    )


def model_parameters(parameters: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Return the settings that are the model's own."""
    return tuple(each for each in parameters if not each[0].startswith(_PREFIX))


def variables_in(parameters: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the variables that settings hold."""
    return {
        name.removeprefix(_PREFIX): value for name, value in parameters if name.startswith(_PREFIX)
    }
