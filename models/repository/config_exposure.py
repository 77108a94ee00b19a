"""How a `config.pbtxt` says that a model is offered to clients, as `Exposure`: by two of its parameters.

| parameter | |
|---|---|
| `meshnode_path` | a path that runs the model, such as `/count-cars` |
| `meshnode_task` | what it does for clients that know only tasks, such as `chat` or `embedding:output=vector`; several are separated by `;` |

Whether answers are kept is Triton's own `response_cache`. A deployment may say otherwise.
"""

from __future__ import annotations

from typing import Any, Final

from meshnode.errors import ModelError, UsageError
from meshnode.models.exposure import NO_EXPOSURE, Exposure, check_exposure, exposed_path
from meshnode.models.tasks import read_tasks

PATH_PARAMETER: Final = "meshnode_path"
TASK_PARAMETER: Final = "meshnode_task"


def exposure_of(message: Any) -> Exposure:
    """Return how a configuration offers its model.

    Args:
        message: A parsed `ModelConfig`.

    Raises:
        ModelError: about the parameter that has no meaning.
    """
    path = _parameter(message, PATH_PARAMETER)
    tasks = _parameter(message, TASK_PARAMETER)
    if not path and not tasks:
        return NO_EXPOSURE
    try:
        return check_exposure(Exposure(exposed_path(path), read_tasks(tasks) if tasks else ()))
    except UsageError as error:
        name = TASK_PARAMETER if tasks else PATH_PARAMETER
        raise ModelError(f"parameter {name!r}: {error}") from None


def _parameter(message: Any, name: str) -> str:
    # A look-up by index would add the parameter to the message.
    return str(message.parameters[name].string_value) if name in message.parameters else ""
