"""What runs a request: this node's model server, or another node's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from meshnode.types import InferRequest, InferResponse, NodeId, ResponsePart
    from meshnode.wire.messages import LoadReport


class LocalExecutor(Protocol):
    """This node's model server. `request.version` is always set."""

    def try_infer_inline(self, request: InferRequest) -> ResponsePart | None:
        """Run a request at once if its model is one that runs inline and is idle; else None."""
        ...

    async def infer(self, request: InferRequest) -> InferResponse:
        """Run a request, in its turn; NotServing if the version is not ready here."""
        ...

    def load_report(self, model: str, version: int) -> LoadReport:
        """Say how busy this node's replica is."""
        ...


class PeerCaller(Protocol):
    """The way to other nodes' model servers. `request.version` is always set.

    Load reports that come with answers reach the router by whoever receives them.
    """

    async def infer(self, node: NodeId, request: InferRequest) -> InferResponse:
        """Run a request there; return when its first part is here.

        DeadlineExceeded if nothing came in the time that the request has. Cancelling it cancels
        the work over there.
        """
        ...
