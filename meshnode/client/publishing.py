"""Putting a version into the mesh's store without serving it, as a flow of calls."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from meshnode.client.calls import Call, Flow, ask, json_message
from meshnode.client.deploying import Wish, drop_upload, upload_files
from meshnode.errors import ConfigError, MeshError, ProtocolError
from meshnode.limits import CLIENT_PUBLISH_TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from meshnode.client.results import DeployProgress

ARTIFACTS_PATH: Final = "/mesh/v1/artifacts"


@dataclass(frozen=True, slots=True)
class Publication:
    """What shall be published.

    Attributes:
        path: A model's folder or a bare model file on this machine.
        name: Public name, or None for the folder's or file's.
        metrics: How good it was found to be, by name.
        note: Free text.
        version: Its number, or None for its own.
        variant: Which further form of a published version it is; empty for the version itself.
        replace: Whether it takes the place of what was published under its name and number.
    """

    path: str
    name: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
    version: int | None = None
    variant: str = ""
    replace: bool = False

    def document(self) -> dict[str, Any]:
        """Return what is said of it in a request, besides where it is."""
        said: dict[str, Any] = {
            "name": self.name,
            "version": self.version,
            "metrics": dict(self.metrics),
            "note": self.note,
        }
        if self.variant:
            said["variant"] = self.variant
        if self.replace:
            said["replace"] = True
        return said


def publish(
    wish: Publication,
    *,
    local: bool,
    gateways: int,
    progress: Callable[[DeployProgress], object],
) -> Flow[dict[str, Any]]:
    """Publish a model; `MeshClient.publish` says the rest.

    Args:
        wish: What.
        local: Whether the daemon is on this machine and reads the path itself.
        gateways: How many gateways the client has.
        progress: Told of every change.

    Returns:
        What was published, as JSON.
    """
    if local:
        place = Path(wish.path).expanduser().absolute()
        if not place.exists():
            raise ConfigError(f"{wish.path!r} does not exist; name a model folder or a model file")
        return (yield from _post({"path": str(place), **wish.document()}))
    begun = yield from upload_files(Wish(wish.path, wish.name), gateways, progress)
    try:
        return (yield from _post({"upload": begun.id, **wish.document()}, only=begun.gateway))
    except MeshError:
        yield from drop_upload(begun)
        raise


def _post(document: Mapping[str, Any], only: int | None = None) -> Flow[dict[str, Any]]:
    call = Call(
        "POST",
        ARTIFACTS_PATH,
        json_message(document),
        repeatable=False,
        keyed=True,
        only=only,
        timeout_s=CLIENT_PUBLISH_TIMEOUT_S,
    )
    reply = yield from ask(call)
    made = reply.document()
    if not isinstance(made, dict) or not isinstance(made.get("versions"), list):
        raise ProtocolError(f"the answer of {reply.url} is no publication")
    return made
