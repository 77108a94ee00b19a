"""`SERVER_MODELS`: which models of a folder are served, and with how many replicas each.

The value is JSON: `[{"model": "x", "replicas": "2"}, {"model": "y"}]`, or the short form `["x", "y"]`. It comes
from the environment, or from a file `.env` in the repository; the environment counts first.
"""

from __future__ import annotations

import io
import json
from typing import Any, Final

from meshnode.errors import ModelError
from meshnode.limits import MAX_INSTANCES, MAX_MODELS

SERVER_MODELS: Final = "SERVER_MODELS"
"""Name of the variable."""

ENVIRONMENT_FILE: Final = ".env"
"""Name of the file in a repository that may have it instead."""


def read_server_models(text: str) -> dict[str, int]:
    """Read the variable's value.

    Returns:
        Instances by the model's name, in the order written.

    Raises:
        ModelError: saying what is wrong, and how it is written.
    """
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _wrong(f"it is not JSON ({error})") from None
    if not isinstance(entries, list):
        raise _wrong("it is no list")
    if len(entries) > MAX_MODELS:
        raise _wrong(f"it has {len(entries)} entries, and at most {MAX_MODELS} are possible")
    wanted: dict[str, int] = {}
    for entry in entries:
        name, replicas = _entry(entry)
        if name in wanted:
            raise _wrong(f"it names {name!r} twice")
        wanted[name] = replicas
    return wanted


def _entry(entry: Any) -> tuple[str, int]:
    if isinstance(entry, str):
        return entry, 1
    if not isinstance(entry, dict) or not isinstance(entry.get("model"), str):
        raise _wrong(f"{entry!r} names no model")
    replicas = entry.get("replicas", 1)
    try:
        count = int(replicas) if isinstance(replicas, str | int) else 0
    except ValueError:
        count = 0
    if isinstance(replicas, bool) or not 1 <= count <= MAX_INSTANCES:
        raise _wrong(f"replicas of {entry['model']!r} is {replicas!r}, not 1 to {MAX_INSTANCES}")
    return entry["model"], count


def _wrong(why: str) -> ModelError:
    return ModelError(
        f"{SERVER_MODELS} cannot be read: {why}; write it as "
        """'[{"model":"x","replicas":"2"},{"model":"y"}]' or '["x","y"]'"""
    )


def find_server_models(text: str) -> str | None:
    """Return the variable's value in the text of an environment file, or None."""
    from dotenv import dotenv_values

    return dotenv_values(stream=io.StringIO(text), interpolate=False).get(SERVER_MODELS)
