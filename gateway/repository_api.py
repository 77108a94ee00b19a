"""Models as a repository that clients load from and unload to: what Triton's and TorchServe's clients do.

A mesh has no folder that all nodes share. What stands for it is the mesh's store: the versions that were published,
and those that are deployed. To load is to deploy, to unload is to withdraw a deployment and keep its versions in
the store, so that they can be loaded again. docs/protocols.md says it for users.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meshnode.gateway.protocols.caller import Caller


class IndexEntry(NamedTuple):
    """One version of a model in the repository.

    Attributes:
        name: The model's.
        version: Its number.
        state: `READY`, `LOADING`, `UNLOADING` or `UNAVAILABLE`.
        reason: Why it is not ready; empty if it is.
    """

    name: str
    version: int
    state: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Load:
    """How a model shall be loaded.

    Attributes:
        config: Its configuration as JSON of Triton's `ModelConfig`, instead of its own; None to keep that.
        files: The model's files by `VERSION/FILE`, instead of those of the store; empty to take those.
        version: The version to load; None for the newest that is known.
        replicas: On how many nodes; None for as many as now, or one.
        wait: Whether to return only once it is ready.
    """

    config: str | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)
    version: int | None = None
    replicas: int | None = None
    wait: bool = True


@dataclass(frozen=True, slots=True)
class Register:
    """A model that shall be brought in.

    Attributes:
        url: Where it comes from: `http://` or `https://`, the name of a published model, or, for the node's owner, a
            path of its machine.
        name: Public name; None for the model's own.
        replicas: On how many nodes it shall be served; 0 for none yet, it is only put into the store.
    """

    url: str
    name: str | None = None
    replicas: int = 0


class RepositoryControl(Protocol):
    """What the daemon lets clients do with the mesh's models as a repository."""

    def index(self, *, only_ready: bool) -> list[IndexEntry]:
        """Describe every version that is served, deployed or published, by name and version."""
        ...

    async def load(self, name: str, wish: Load, caller: Caller) -> int:
        """Serve a model; return the version that is newest, once it is ready.

        ModelNotFound if nothing is known under the name; ModelError if it cannot be loaded.
        """
        ...

    async def unload(self, name: str, caller: Caller, *, dependents: bool = False) -> None:
        """Serve a model no more, with `dependents` the models of an ensemble neither; ModelNotFound if none is served."""
        ...

    async def register(self, wish: Register, caller: Caller) -> tuple[str, int]:
        """Bring a model in from where a URL says and serve it; return its name and version, perhaps not yet ready."""
        ...

    async def ready(self, name: str, version: int | None, replicas: int = 1) -> None:
        """Wait for so many replicas of a version, the newest if None; raises as `load`, and NoReplica if no node can be one."""
        ...

    async def remove(self, name: str, version: int | None, caller: Caller) -> None:
        """Take a model, or one version of it, out of service; one that is not served, out of the store."""
        ...

    async def scale(self, name: str, version: int | None, replicas: int, caller: Caller) -> None:
        """Serve a model, or a version too, on so many nodes, on 0 no more; ModelNotFound if it is not known."""
        ...

    async def make_default(self, name: str, version: int, caller: Caller) -> None:
        """Let a version answer who names none; ModelNotFound if it is not deployed."""
        ...
