"""Requests to a daemon over its control channel, one connection each, synchronous.

`ControlClient` uses `http.client` over a Unix socket (or loopback TCP with a token): no event
loop, nothing to import that takes time. An error answer becomes the project's own error with the
daemon's sentence, so that a command only prints it.
"""

from __future__ import annotations

import http.client
import json
import shlex
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from meshnode.client.control import ControlAddress, control_address
from meshnode.config import MAX_BODY_BYTES
from meshnode.errors import (
    ConfigError,
    DeadlineExceeded,
    Forbidden,
    InvalidRequest,
    MeshError,
    ModelNotFound,
    NoReplica,
    PeerError,
    Saturated,
    TooLarge,
    error_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from meshnode.types import Buffer

DEFAULT_TIMEOUT_S: Final = 10.0
"""For answers that a daemon gives from its own tables; it has them at hand."""

_MAX_ANSWER_BYTES: Final = 8 * MAX_BODY_BYTES
"""A tensor of MAX_BODY_BYTES takes up to about 5 times as much as JSON numbers."""

_MAX_SENTENCE_LENGTH: Final = 2000  # a screen of text; longer is a trace, not a sentence

_BY_STATUS: Final[dict[int, type[MeshError]]] = {
    400: InvalidRequest,
    401: Forbidden,
    403: Forbidden,
    404: ModelNotFound,
    413: TooLarge,
    429: Saturated,
    503: NoReplica,
    504: DeadlineExceeded,
}  # for bodies without a code: the Open Inference Protocol has none


@dataclass(frozen=True, slots=True)
class Answer:
    """A successful answer.

    Attributes:
        document: The JSON body, or None if it is empty.
        route: The `Mesh-Route` header, or an empty string.
    """

    document: Any
    route: str = ""


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket. The host name is what the gateway's check of `Host` allows."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class ControlClient:
    """Asks the daemon of one data folder.

    Each call opens a connection and closes it, so a client holds nothing between calls and may
    outlive a restart of the daemon.
    """

    def __init__(self, data_dir: Path) -> None:
        """Make a client; whether a daemon runs shows at the first call."""
        self.data_dir = data_dir

    def __repr__(self) -> str:
        return f"<ControlClient {self.data_dir}>"

    def get(self, path: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> Any:
        """GET a path and return its JSON document.

        Args:
            path: Path of the HTTP API, with its names quoted.
            timeout_s: Seconds until the whole answer must be there.

        Raises:
            ConfigError: if no daemon runs on the data folder.
            MeshError: what the daemon answered; `DeadlineExceeded` if it did not in time.
        """
        return self.request("GET", path, timeout_s=timeout_s).document

    def post(self, path: str, document: Any, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> Any:
        """POST a JSON document and return the answer's; raises as `get` does."""
        body = json.dumps(document).encode()
        headers = {"Content-Type": "application/json"}
        return self.request("POST", path, (body,), headers, timeout_s=timeout_s).document

    def delete(self, path: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> Any:
        """DELETE a path and return the answer's document, if it has one; raises as `get` does."""
        return self.request("DELETE", path, timeout_s=timeout_s).document

    def infer(
        self,
        model: str,
        request: Mapping[str, Any],
        binary: Sequence[Buffer] = (),
        *,
        version: int | None = None,
        timeout_s: float,
    ) -> Answer:
        """POST an Open Inference Protocol request.

        Args:
            model: Public name of the model.
            request: The JSON part.
            binary: Contents of the inputs that carry `binary_data_size`, in their order.
            version: A version, or None for the newest that is ready.
            timeout_s: Seconds until the whole answer must be there.

        Raises:
            ConfigError, MeshError: as `get` does.
        """
        head = json.dumps(request).encode()
        headers = {"Content-Type": "application/json"}
        if binary:
            headers = {
                "Content-Type": "application/octet-stream",
                "Inference-Header-Content-Length": str(len(head)),
            }
        path = f"{model_path(model, version)}/infer"
        return self.request("POST", path, (head, *binary), headers, timeout_s=timeout_s)

    def request(
        self,
        method: str,
        path: str,
        body: Sequence[Buffer] = (),
        headers: Mapping[str, str] | None = None,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> Answer:
        """Send one request and read its answer; raises as `get` does."""
        address = control_address(self.data_dir)
        sent = dict(headers or {})
        if address.token:
            sent["Authorization"] = f"Bearer {address.token}"
        deadline = time.monotonic() + timeout_s
        connection = _connection(address, timeout_s)
        try:
            self._connect(connection)
            line = connection.sock
            connection.request(method, path, body=b"".join(body) or None, headers=sent)
            response = connection.getresponse()
            content = _read_all(line, response, deadline)
        except (http.client.HTTPException, OSError) as error:
            raise self._broken(error, timeout_s) from None
        finally:
            connection.close()
        if response.status >= 400:
            raise _error_of(response.status, content)
        return Answer(_document(content), response.headers.get("Mesh-Route", ""))

    def _connect(self, connection: http.client.HTTPConnection) -> None:
        try:
            connection.connect()
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
            raise ConfigError(
                f"no meshnode daemon is running on {self.data_dir}; "
                f"start one with: meshnode join --data-dir {shlex.quote(str(self.data_dir))}"
            ) from None
        except PermissionError:
            raise ConfigError(
                f"the daemon on {self.data_dir} belongs to another user; only they can control it"
            ) from None

    def _broken(self, error: Exception, timeout_s: float) -> MeshError:
        if isinstance(error, TimeoutError):
            return DeadlineExceeded(
                f"the daemon on {self.data_dir} did not answer within {timeout_s:g} s"
            )
        return PeerError(
            f"the daemon on {self.data_dir} broke off before it had answered "
            f"({str(error) or type(error).__name__})"
        )


def model_path(model: str, version: int | None = None) -> str:
    """Return the Open Inference Protocol's path of a model or one version of it."""
    path = f"/v2/models/{quote(model, safe='')}"
    return path if version is None else f"{path}/versions/{version}"


def mesh_model_path(model: str) -> str:
    """Return the path of a model's entry in the mesh's own API."""
    return f"/mesh/v1/models/{quote(model, safe='')}"


def deployment_path(model: str) -> str:
    """Return the path of a model's deployment."""
    return f"/mesh/v1/deployments/{quote(model, safe='')}"


def _connection(address: ControlAddress, timeout_s: float) -> http.client.HTTPConnection:
    if address.unix is not None:
        return _UnixConnection(address.unix, timeout_s)
    assert address.tcp is not None  # one of the two is set
    return http.client.HTTPConnection(*address.tcp, timeout=timeout_s)


def _read_all(line: socket.socket, response: http.client.HTTPResponse, deadline: float) -> bytes:
    """Read the body in pieces, so that a slow trickle ends at the deadline too."""
    pieces: list[bytes] = []
    size = 0
    while True:
        line.settimeout(max(deadline - time.monotonic(), 1e-3))
        piece = response.read1(1 << 20)
        if not piece:
            break
        size += len(piece)
        if size > _MAX_ANSWER_BYTES:
            raise TooLarge(f"the answer exceeds {_MAX_ANSWER_BYTES} bytes; ask for fewer outputs")
        pieces.append(piece)
    if response.length:  # what Content-Length still promised when the line ended
        raise http.client.IncompleteRead(b"".join(pieces), response.length)
    return b"".join(pieces)


def _document(content: bytes) -> Any:
    if not content:
        return None
    try:
        return json.loads(content)
    except ValueError:
        raise PeerError("the daemon's answer is not JSON") from None


def _error_of(status: int, content: bytes) -> MeshError:
    sentence, code = f"the daemon answered with HTTP status {status}", None
    try:
        document = json.loads(content)
    except ValueError:
        document = None
    if isinstance(document, dict) and isinstance(document.get("error"), str):
        sentence = document["error"][:_MAX_SENTENCE_LENGTH] or sentence
        code = document.get("code")
    if isinstance(code, str):
        return error_of(code, sentence)
    return _BY_STATUS.get(status, PeerError)(sentence)
