"""A model's files on their way to a gateway that is not on this machine.

The files go up in pieces. A piece whose answer was lost is sent again; the gateway says how much of a
file it has, and sending goes on from there. An upload lives on one gateway: when that one is lost, it
begins again on another.
"""

from __future__ import annotations

import os
import unicodedata
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from meshnode.client.calls import Blocking, Call, Flow, Message, ask, json_message
from meshnode.client.results import reply_as
from meshnode.errors import (
    ConfigError,
    DeadlineExceeded,
    GatewayUnavailable,
    InvalidRequest,
    ModelError,
    NotFound,
    PeerError,
)
from meshnode.limits import CLIENT_PIECE_TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.models.repository.scanning import FoundModel
    from meshnode.models.repository.version_files import FoundFile

UPLOADS_PATH: Final = "/mesh/v1/uploads"

CONFIG_FILE: Final = "config.pbtxt"
METADATA_FILE: Final = "metadata.json"


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file to upload.

    Attributes:
        path: Its path in the upload, with `/`.
        place: Where it is on this machine.
        size_bytes: Its length.
    """

    path: str
    place: Path
    size_bytes: int


class Upload(msgspec.Struct, frozen=True):
    """An upload that a gateway has begun.

    Attributes:
        id: Its id.
        piece_bytes: The longest piece.
        gateway: Index of the gateway that has it.
    """

    id: str
    piece_bytes: int
    gateway: int = 0


class _Received(msgspec.Struct):
    received_bytes: int


class _State(msgspec.Struct):
    files: list[_Received]


def find_files(path: str, name: str | None) -> list[SourceFile]:
    """Return the files of a model: those that would be served if it lay on a node.

    Args:
        path: A model's folder, or a bare model file.
        name: The public name that it shall have, or None for its own.

    Raises:
        ConfigError: if there is nothing at the path.
        ModelError: if it holds no model, several, or one that cannot be served.
    """
    from meshnode.models.repository.scanning import bare_metadata_file, scan

    place = Path(os.path.abspath(Path(path).expanduser()))  # noqa: PTH100 - as `scan` spells it
    if not place.exists():
        raise ConfigError(f"{path!r} does not exist; name a model folder or a model file")
    models = scan(place, name)
    if len(models) > 1:
        raise ModelError(f"{path!r} holds several models; deploy one of its folders at a time")
    model = models[0]
    if model.error:
        raise ModelError(model.error)
    if place.is_file():
        found = [_source(each.path, each) for each in model.versions[0].files]
        beside = bare_metadata_file(place)
        if beside is not None:
            found.append(SourceFile(beside.name, beside, beside.stat().st_size))
    else:
        found = _in_folder(place, model)
    return sorted(found, key=lambda each: each.path)


def _in_folder(place: Path, model: FoundModel) -> list[SourceFile]:
    """Return a folder's files where they lie in it, so that the other side finds the same model."""
    sources = {each.source: each for version in model.versions for each in version.files}
    found = [
        _source(f"{place.name}/{source.relative_to(place).as_posix()}", each)
        for source, each in sources.items()
    ]
    for name in (CONFIG_FILE, METADATA_FILE):
        beside = place / name
        if beside.is_file() and beside not in sources:
            found.append(SourceFile(f"{place.name}/{name}", beside, beside.stat().st_size))
    return found


def _source(path: str, file: FoundFile) -> SourceFile:
    # Some file systems spell names in another normal form than all others do.
    return SourceFile(unicodedata.normalize("NFC", path), file.source, file.size_bytes)


def read_piece(file: SourceFile, offset: int, size_bytes: int) -> bytes:
    """Return a piece of a file.

    Raises:
        ConfigError: if it cannot be read, or has changed its length since it was listed.
    """
    try:
        with file.place.open("rb") as stream:
            stream.seek(offset)
            piece = stream.read(size_bytes)
    except OSError as error:
        raise ConfigError(f"{str(file.place)!r} cannot be read: {error.strerror}") from None
    if len(piece) != size_bytes:
        raise ConfigError(f"{str(file.place)!r} changed while it was being uploaded; try again")
    return piece


def upload(
    files: list[SourceFile],
    progress: Callable[[int], None],
    gateways: int,
    only: int | None = None,
) -> Flow[Upload]:
    """Send files to any gateway.

    Args:
        files: What to send.
        progress: Called with the bytes that the gateway has.
        gateways: How many gateways the client has: as often it begins.
        only: Index of the gateway that must have them; None for whichever.

    Raises:
        MeshError: of the gateway that was tried last.
    """
    for left in reversed(range(gateways if only is None else 1)):
        begun = yield from _begin(files, only)
        try:
            yield from _send_all(begun, files, progress)
        except (GatewayUnavailable, DeadlineExceeded, NotFound):
            # The gateway is lost, or has been started anew and knows nothing of the upload.
            if not left:
                raise
            continue
        return begun
    raise AssertionError("a client has at least one gateway")


def _begin(files: list[SourceFile], only: int | None) -> Flow[Upload]:
    document = {"files": [{"path": each.path, "size_bytes": each.size_bytes} for each in files]}
    # Beginning twice does no harm: an upload that nobody goes on with is forgotten.
    reply = yield from ask(Call("POST", UPLOADS_PATH, json_message(document), only=only))
    begun = reply_as(Upload, reply)
    if begun.piece_bytes < 1:
        raise PeerError(f"{reply.url} takes no pieces")
    return msgspec.structs.replace(begun, gateway=reply.gateway)


def _send_all(
    begun: Upload, files: list[SourceFile], progress: Callable[[int], None]
) -> Flow[None]:
    sent_bytes = 0
    progress(0)
    for index, file in enumerate(files):
        offset = 0
        while offset < file.size_bytes:
            size_bytes = min(begun.piece_bytes, file.size_bytes - offset)
            piece = yield Blocking(partial(read_piece, file, offset, size_bytes))
            received = yield from _send_piece(begun, index, offset, piece)
            if not offset <= received <= file.size_bytes:
                raise PeerError("the gateway lost a part of the upload that it had; try again")
            offset = received
            progress(sent_bytes + offset)
        sent_bytes += file.size_bytes


def _send_piece(begun: Upload, index: int, offset: int, piece: bytes) -> Flow[int]:
    """Send one piece; return how many bytes of the file the gateway has then."""
    message = Message({"Content-Type": "application/octet-stream"}, (piece,))
    place = f"{UPLOADS_PATH}/{begun.id}"
    call = Call(
        "PUT",
        f"{place}/{index}?offset={offset}",
        lambda _remaining_s: message,
        only=begun.gateway,
        timeout_s=CLIENT_PIECE_TIMEOUT_S,
    )
    try:
        return reply_as(_Received, (yield from ask(call))).received_bytes
    except InvalidRequest:
        # A part of a piece may have arrived before: the gateway knows how much it has.
        state = reply_as(_State, (yield from ask(Call("GET", place, only=begun.gateway))))
        if len(state.files) <= index or state.files[index].received_bytes <= offset:
            raise
        return state.files[index].received_bytes
