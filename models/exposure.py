"""How a model is offered to clients, beside its own name and tensors: paths, tasks of other dialects, caching.

It travels in the manifest, so that every gateway offers a model alike, but it is no part of what is executed: the
same files offered otherwise are the same model. `config.pbtxt` may say it, and a deployment overrides that.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import msgspec

from meshnode.errors import ModelError
from meshnode.limits import MAX_ROUTE_LENGTH, MAX_TASK_TEXT_LENGTH, MAX_TASKS
from meshnode.models.routes import is_own_path

if TYPE_CHECKING:
    from collections.abc import Iterable

PREDICT_LATER: Final = "/predict/async"
"""A path below which others are free: a model may have `/predict`, which is asked where no `?model=` is named."""

_PATH: Final = re.compile(r"(?:/[A-Za-z0-9._~-]+)+")


class Task(StrEnum):
    """What a model does in terms of clients that know only tasks (OpenAI's)."""

    CHAT = "chat"
    COMPLETION = "completion"
    EMBEDDING = "embedding"


class TaskMapping(msgspec.Struct, array_like=True, frozen=True):
    """One task that a model can be asked for.

    Attributes:
        task: Which.
        text_input: The input that takes the text; empty: the only one of BYTES.
        output: The output that has the text or the vector; empty: the only one that could be it.
        options: (name, value) pairs for the dialect, such as a template.
    """

    task: Task
    text_input: str = ""
    output: str = ""
    options: tuple[tuple[str, str], ...] = ()


class Exposure(msgspec.Struct, array_like=True, frozen=True):
    """How a model version is offered.

    Fields are only ever added at the end (docs/ARCHITECTURE.md, the upgrade contract).

    Attributes:
        path: A path of the user's choice that runs the model, such as `/count-cars`; empty for none.
        tasks: What it does for clients that know only tasks.
        cache: Whether answers may be kept and reused, if the deployment says so; None leaves it to
            the model's own configuration.
    """

    path: str = ""
    tasks: tuple[TaskMapping, ...] = ()
    cache: bool | None = None


NO_EXPOSURE = Exposure()
"""Of a model that is offered under its name only."""


class ExposureChange(msgspec.Struct, frozen=True):
    """What a deployment says of how its model is offered; None for what it does not say.

    Attributes:
        path: Instead of the configuration's; empty for none.
        tasks: Likewise; without any for none.
        cache: Likewise.
    """

    path: str | None = None
    tasks: tuple[TaskMapping, ...] | None = None
    cache: bool | None = None

    def applied_to(self, exposure: Exposure) -> Exposure:
        """Return what a configuration says, with what the deployment says instead.

        Raises:
            ModelError: if it is not within limits.
        """
        changed = Exposure(
            exposure.path if self.path is None else exposed_path(self.path),
            exposure.tasks if self.tasks is None else self.tasks,
            exposure.cache if self.cache is None else self.cache,
        )
        return check_exposure(changed)


NO_CHANGE = ExposureChange()
"""Of a deployment that leaves it to the model's configuration."""


def exposed_path(text: str) -> str:
    """Return a path under which a model is offered, without a slash at its end; empty for none.

    Raises:
        ModelError: if it cannot be one, or if the mesh itself answers there.
    """
    path = text.rstrip("/")
    if not text:
        return ""
    if (
        not _PATH.fullmatch(path)
        or len(path) > MAX_ROUTE_LENGTH
        or any(part in (".", "..") for part in path.split("/"))
    ):
        raise ModelError(
            f"{text[:60]!r} is not a path under which a model can be offered: it begins with '/', and its parts "
            f"are letters, digits, '.', '_', '~' and '-', at most {MAX_ROUTE_LENGTH} characters altogether; for "
            "example /count-cars"
        )
    if is_own_path(path) or path == PREDICT_LATER:
        raise ModelError(
            f"the mesh itself answers at {path!r} and below, so no model can be offered there; choose another "
            "path, such as /count-cars"
        )
    return path


def check_exposure(exposure: Exposure) -> Exposure:
    """Return an exposure that came from elsewhere if all of it is within limits.

    A path at which a later version of meshnode answers itself is no error: it is never asked.

    Raises:
        ModelError: naming the first field that is not.
    """
    path = exposure.path
    if path and (not _PATH.fullmatch(path) or len(path) > MAX_ROUTE_LENGTH):
        raise ModelError(f"{path[:60]!r} is not a path under which a model can be offered")
    if len(exposure.tasks) > MAX_TASKS:
        raise ModelError(f"a model has {len(exposure.tasks)} tasks; at most {MAX_TASKS}")
    for mapping in exposure.tasks:
        words = (mapping.text_input, mapping.output, *_words(mapping.options))
        if sum(map(len, words)) > MAX_TASK_TEXT_LENGTH:
            raise ModelError(
                f"the task {mapping.task} has more than {MAX_TASK_TEXT_LENGTH} characters of names and options"
            )
    return exposure


def _words(options: Iterable[tuple[str, str]]) -> Iterable[str]:
    return (word for pair in options for word in pair)
