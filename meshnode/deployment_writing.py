"""Deployments as documents and as TOML, in the words of a deployment file; `deployment_file` reads them again."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

from meshnode.deployment_file import SCALING_FIELDS, SEVERAL, usual_replicas
from meshnode.deployment_values import size_text
from meshnode.release_file import release_document
from meshnode.state.scaling import Scaling

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from meshnode.deployment_file import DeploymentSpec
    from meshnode.state.constraints import Constraints, Resources

_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")


def document_of(spec: DeploymentSpec) -> dict[str, Any]:
    """Return a deployment as `read_document` reads it; what has its default is left out."""
    made: dict[str, Any] = {"name": spec.name, "model": spec.model}
    if spec.versions:
        made["version"] = spec.versions[0] if len(spec.versions) == 1 else [*spec.versions]
    if spec.replicas != usual_replicas(spec.on, spec.scaling):
        made["replicas"] = spec.replicas
    if spec.on:
        made["on"] = [*spec.on]
    if not spec.enabled:
        made["enabled"] = False
    offer = {
        "path": spec.path,
        "tasks": None if spec.tasks is None else [*spec.tasks],
        "cache": spec.cache,
    }
    made |= {key: value for key, value in offer.items() if value is not None}
    if spec.note:
        made["note"] = spec.note
    if spec.standby:
        made["standby"] = spec.standby
    if spec.revision:
        made["revision"] = spec.revision
    tables: dict[str, dict[str, Any]] = {
        "metrics": dict(spec.metrics),
        "variants": dict(spec.variants),
        "where": constraints_document(spec.where),
        "resources": resources_document(spec.resources),
        "autoscaling": scaling_document(spec.scaling),
        "release": release_document(spec.release),
        "env": dict(spec.env),
    }
    return made | {key: table for key, table in tables.items() if table}


def constraints_document(where: Constraints) -> dict[str, Any]:
    """Return conditions as the table `where` has them."""
    said: dict[str, Any] = {
        "regions": [*where.regions],
        "labels": dict(where.labels),
        "accelerator": where.accelerator,
        "accelerator_memory": size_text(where.accelerator_memory_bytes),
        "memory": size_text(where.memory_bytes),
        "runtime": where.runtime,
        "on_mains": where.on_mains,
    }
    return {key: value for key, value in said.items() if value}


def resources_document(resources: Resources) -> dict[str, Any]:
    """Return what a replica takes as the table `resources` has it."""
    said = {"memory": size_text(resources.memory_bytes), "cpus": resources.cpus}
    return {key: value for key, value in said.items() if value}


def scaling_document(scaling: Scaling | None) -> dict[str, Any]:
    """Return autoscaling as the table `autoscaling` has it; what has its default is left out."""
    if scaling is None:
        return {}
    said: dict[str, Any] = {"min": scaling.min_replicas, "max": scaling.max_replicas}
    usual = Scaling(scaling.min_replicas, scaling.max_replicas)
    others = (name for name in scaling.__struct_fields__ if name not in SCALING_FIELDS.values())
    differing = {name: getattr(scaling, name) for name in others}
    return said | {
        name: value for name, value in differing.items() if value != getattr(usual, name)
    }


def write_toml(specs: Sequence[DeploymentSpec]) -> str:
    """Return deployments as a TOML file that says exactly this."""
    if len(specs) == 1:
        return "".join(_toml_lines(document_of(specs[0]), ""))
    parts = (
        "".join((f"[[{SEVERAL}]]\n", *_toml_lines(document_of(each), f"{SEVERAL}.")))
        for each in specs
    )
    return "\n".join(parts)


def _toml_lines(document: Mapping[str, Any], prefix: str) -> Iterable[str]:
    tables = {key: value for key, value in document.items() if isinstance(value, dict)}
    for key, value in document.items():
        if key not in tables:
            yield f"{key} = {_toml_value(value)}\n"
    for key, table in tables.items():
        yield f"\n[{prefix}{key}]\n"
        for name, value in table.items():
            yield f"{_toml_key(name)} = {_toml_value(value)}\n"


def _toml_key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _toml_value(key)


def _toml_value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return f"[{', '.join(map(_toml_value, value))}]"
    if isinstance(value, dict):
        pairs = (f"{_toml_key(key)} = {_toml_value(each)}" for key, each in value.items())
        return f"{{ {', '.join(pairs)} }}"
    return repr(value)
