"""Python models: always code, always in processes of their own (`meshnode.models.workers`)."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Final

from meshnode.models.execution import Spelling
from meshnode.models.runtimes.base import Capability, Described
from meshnode.models.runtimes.processes import describe_worker, load_worker
from meshnode.models.workers.settings import WorkerSettings

if TYPE_CHECKING:
    from meshnode.models.runtimes.base import Environment, Opening
    from meshnode.models.workers.host import WorkerProcess

PYTHON_RUNTIME: Final = "python"


class PythonRuntime:
    """Opens `model.py`, `pipeline.py`, predictors and TorchServe archives."""

    name = PYTHON_RUNTIME
    platform = "python"
    is_code = True
    shares_instance = False

    def __init__(self, environment: Environment | None = None) -> None:
        """Run processes as the node does; without an environment models can ask no others."""
        self._environment = environment
        self._settings = environment.workers if environment is not None else WorkerSettings()

    def __repr__(self) -> str:
        return f"<PythonRuntime {self._settings!r}>"

    def capability(self) -> Capability:
        """Say which Python there is; see `Runtime.capability`."""
        return Capability(platform.python_version())

    def describe(self, opening: Opening) -> Described:
        """Ask a model what it takes and gives; see `Runtime.describe`.

        Where code is not allowed, a Triton model whose configuration says it all is taken at its word, so
        that a node can publish what others may run.
        """
        refused = self._settings.why_refused(opening.folder)
        if refused and _spelling(opening) is Spelling.TRITON and opening.inputs and opening.outputs:
            return Described(
                opening.inputs, opening.outputs, opening.max_batch_size, opening.execution
            )
        return describe_worker(self.name, _spelling(opening), opening, self._settings)

    def load(self, opening: Opening) -> WorkerProcess:
        """Open a model; see `Runtime.load`."""
        infer = self._environment.infer if self._environment is not None else None
        return load_worker(self.name, _spelling(opening), opening, self._settings, infer)


def _spelling(opening: Opening) -> Spelling:
    """Return how it is written; a `model.py` whose settings do not say is Triton's."""
    return opening.execution.spelling or Spelling.TRITON
