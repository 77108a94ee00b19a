"""One HTTP connection to a gateway, blocking, with a deadline for every byte.

The standard library's `http.client` reads the answers. Requests are written here, so that a tensor
goes from its own memory to the socket; and every wait for the socket passes through a `Watch`, so that
a slow trickle ends at the deadline and a silent gateway is noticed.
"""

from __future__ import annotations

import http.client
import io
import select
import socket
import ssl
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, cast

from meshnode.client.calls import Reply
from meshnode.client.plan import Fault, Try
from meshnode.client.tries import (
    TryFailed,
    foreign_daemon,
    hung_up,
    no_daemon,
    tls_failed,
    too_large,
    untrusted,
    why_unreachable,
)
from meshnode.errors import ConfigError
from meshnode.limits import (
    CLIENT_PROGRESS_BYTES,
    MAX_CLIENT_ANSWER_BYTES,
    MAX_RESOLVED_ADDRESSES,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from meshnode.client.calls import Message
    from meshnode.client.endpoints import Endpoint
    from meshnode.types import Buffer

_JOINED_BYTES: Final = 64 * 1024  # below it one copy is cheaper than a second packet
_WRITTEN_AT_ONCE_BYTES: Final = 256 * 1024  # what a blocking write may take before it is looked at
_READ_AT_ONCE_BYTES: Final = 1024 * 1024
_MIN_WAIT_S: Final = 0.001  # a timeout of 0 would make a socket non-blocking


class Stale(Exception):
    """A connection that was kept had been closed by the other side. Never leaves the client.

    Not a byte was answered on it; whether the request was read, nobody can tell.
    """


class Watch:
    """The time of one try: how long to wait for the next byte, and what when none comes."""

    def __init__(
        self,
        step: Try,
        is_alive: Callable[[float], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin.

        Args:
            step: The times that were decided for this try.
            is_alive: Asks the gateway for a sign of life; takes the seconds that it has.
            clock: Monotonic seconds.
        """
        now = clock()
        self._clock = clock
        self._is_alive = is_alive
        self._probe_s = step.probe_s
        self._silence_s = step.silence_s
        self._timeout_s = step.timeout_s
        self.deadline = now + step.timeout_s
        self.connect_deadline = min(now + step.connect_s, self.deadline)
        self._next_check = self._after(now)

    def _after(self, now: float) -> float:
        return (
            self.deadline if self._silence_s is None else min(now + self._silence_s, self.deadline)
        )

    def wait_s(self) -> float:
        """Seconds until a wait must be interrupted."""
        return max(self._next_check - self._clock(), _MIN_WAIT_S)

    def heard(self) -> None:
        """Something moved: silence begins anew."""
        self._next_check = self._after(self._clock())

    def check(self) -> None:
        """Look at the time: before every byte, since bytes may never cease to come, and after a wait.

        Raises:
            TryFailed: if the time is over, or the gateway gave no sign of life.
        """
        now = self._clock()
        if now >= self.deadline:
            raise TryFailed(Fault.SILENT, f"no complete answer within {self._timeout_s:.3g} s")
        if self._silence_s is None or now < self._next_check:
            return
        if not self._is_alive(min(self._probe_s, self.deadline - now)):
            raise TryFailed(Fault.SILENT, "accepts connections but gives no sign of life")
        self._silence_s *= 2  # it lives; the model takes its time
        self._next_check = self._after(self._clock())


class _Reader(io.RawIOBase):
    """What `http.client` reads an answer from.

    A head is small, so what comes of it, and of `100 Continue` before it, is no progress until it is
    complete; of a body, each `CLIENT_PROGRESS_BYTES` are.
    """

    def __init__(self, line: socket.socket, watch: Watch) -> None:
        super().__init__()
        self._line = line
        self._watch = watch
        self._counts = False
        self._uncounted_bytes = 0
        self.received = False

    def watch_by(self, watch: Watch) -> None:
        """What comes from here on has this time."""
        self._watch = watch

    def head_is_complete(self) -> None:
        """From here on bytes count."""
        self._counts = True
        self._watch.heard()

    def makefile(self, *_: object) -> io.BufferedReader:
        return io.BufferedReader(self, 64 * 1024)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            self._watch.check()
            self._line.settimeout(self._watch.wait_s())
            try:
                count = self._line.recv_into(buffer)
            except TimeoutError:
                continue
            self.received = self.received or count > 0
            self._uncounted_bytes += count
            if self._counts and self._uncounted_bytes >= CLIENT_PROGRESS_BYTES:
                self._uncounted_bytes = 0
                self._watch.heard()
            return count


class Connection:
    """A connection that stands."""

    def __init__(self, endpoint: Endpoint, line: socket.socket, token: str) -> None:
        """Use `connect`."""
        self.endpoint = endpoint
        self._line = line
        self._token = token
        self.used = False
        self.idle_since = 0.0

    def __repr__(self) -> str:
        return f"<Connection to {self.endpoint}{', used' if self.used else ''}>"

    def close(self) -> None:
        """Close it; a thread that waits for its bytes is woken, which closing alone does not do everywhere."""
        with suppress(OSError):  # it may be closed, or not be connected any more
            socket.socket.shutdown(self._line, socket.SHUT_RDWR)  # without TLS's farewell
        self._line.close()

    @property
    def is_stale(self) -> bool:
        """Whether the other side has closed it, or sent what nobody asked for."""
        if hasattr(select, "poll"):
            poll = select.poll()
            poll.register(self._line, select.POLLIN)
            return bool(poll.poll(0))
        return bool(select.select([self._line], [], [], 0)[0])

    def exchange(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        message: Message,
        watch: Watch,
        gateway: int,
    ) -> tuple[Reply, bool]:
        """Send a request and read its answer.

        Args:
            method: Upper case.
            path: Path of the HTTP API.
            headers: Of the client, sent besides the message's.
            message: What is sent.
            watch: The time that it has.
            gateway: Index for the reply.

        Returns:
            The reply, and whether the connection can be used again.

        Raises:
            TryFailed: if there is no answer.
            Stale: if the connection was kept from an earlier exchange and had been closed since.
            TooLarge: if the answer exceeds `MAX_CLIENT_ANSWER_BYTES`.
        """
        answer = self.begin(method, path, headers, message, watch)
        reply = answer.complete(gateway)
        return reply, answer.is_reusable

    def begin(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        message: Message,
        watch: Watch,
    ) -> Answer:
        """Send a request and read the head of its answer; arguments and errors are those of `exchange`."""
        reader = _Reader(self._line, watch)
        was_used, self.used = self.used, True
        try:
            unsent = self._send(self._head(method, path, headers, message), message.parts, watch)
            # A refusal may be there although not all of the request was taken.
            response = http.client.HTTPResponse(cast("socket.socket", reader), method=method)
            try:
                response.begin()
                _check_length(response)
                reader.head_is_complete()
            except BaseException:
                response.close()
                raise
        except (http.client.HTTPException, OSError) as error:
            if was_used and not reader.received:
                raise Stale from None
            if not reader.received:
                raise hung_up(self.endpoint) from None
            raise _broke_off(error) from None
        return Answer(self, response, reader, unsent=unsent)

    def _head(self, method: str, path: str, headers: Mapping[str, str], message: Message) -> bytes:
        size_bytes = sum(memoryview(part).nbytes for part in message.parts)
        fields = {"Host": self.endpoint.host_header, "Accept-Encoding": "identity", **headers}
        fields.update(message.headers)
        if self._token:
            fields["Authorization"] = f"Bearer {self._token}"
        if size_bytes or method in ("POST", "PUT"):
            fields["Content-Length"] = str(size_bytes)
        lines = [f"{method} {self.endpoint.prefix}{path} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in fields.items()]
        head = "\r\n".join([*lines, "\r\n"])
        if head.count("\r") != len(lines) + 1 or head.count("\n") != len(lines) + 1:
            raise ConfigError("a header's value contains a line end")
        return head.encode("latin-1")

    def _send(self, head: bytes, parts: Sequence[Buffer], watch: Watch) -> bool:
        """Write the request; return whether the other side stopped taking it."""
        waiting: list[Buffer] = [head]
        size = len(head)
        try:
            for part in parts:
                part_bytes = memoryview(part).nbytes
                if size + part_bytes > _JOINED_BYTES:
                    self._write(b"".join(waiting), watch)
                    waiting, size = [], 0
                if part_bytes > _JOINED_BYTES:
                    self._write(part, watch)
                else:
                    waiting.append(part)
                    size += part_bytes
            if waiting:
                self._write(b"".join(waiting), watch)
        except (BrokenPipeError, ConnectionResetError):
            return True
        return False

    def _write(self, data: Buffer, watch: Watch) -> None:
        view = memoryview(data).cast("B")
        while view:
            watch.check()
            self._line.settimeout(watch.wait_s())
            try:
                sent = self._line.send(view[:_WRITTEN_AT_ONCE_BYTES])
            except TimeoutError:
                continue
            watch.heard()
            view = view[sent:]


class Answer:
    """An answer whose head is here: read it whole with `complete`, or as it comes with `read`."""

    def __init__(
        self,
        connection: Connection,
        response: http.client.HTTPResponse,
        reader: _Reader,
        *,
        unsent: bool,
    ) -> None:
        """Use `Connection.begin`."""
        self._connection = connection
        self._response = response
        self._reader = reader
        self._unsent = unsent
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}

    def __repr__(self) -> str:
        return f"<Answer {self.status} of {self._connection.endpoint}>"

    @property
    def is_reusable(self) -> bool:
        """Whether its connection can be used again, once it is complete."""
        return not self._response.will_close and not self._unsent

    def complete(self, gateway: int) -> Reply:
        """Return it with all of its body; raises as `Connection.exchange` does."""
        try:
            body = _read_body(self._response)
        except (http.client.HTTPException, OSError) as error:
            raise _broke_off(error) from None
        finally:
            self._response.close()
        return Reply(self.status, self.headers, body, gateway, str(self._connection.endpoint))

    def read(self, watch: Watch) -> bytes:
        """Return the next bytes of its body, as soon as there are some; empty at its end.

        Args:
            watch: The time that they have.

        Raises:
            TryFailed: if it breaks off, or nothing comes in time.
        """
        self._reader.watch_by(watch)
        try:
            return self._response.read1(_READ_AT_ONCE_BYTES)
        except (http.client.HTTPException, OSError, ValueError) as error:
            # A ValueError is what a response says that was closed in another thread.
            raise _broke_off(error) from None

    def close(self) -> None:
        """Close it together with its connection."""
        self._connection.close()
        self._response.close()


def _broke_off(error: Exception) -> TryFailed:
    return TryFailed(Fault.BROKEN, f"broke off before it had answered ({_why(error)})")


def _check_length(response: http.client.HTTPResponse) -> None:
    """Refuse a length that is none: `http.client` would read on until the connection ends."""
    text = response.getheader("Content-Length")
    if text is not None and not (text.isascii() and text.isdigit()):
        raise http.client.HTTPException


def _read_body(response: http.client.HTTPResponse) -> Buffer:
    length = response.length
    if length is not None and length > MAX_CLIENT_ANSWER_BYTES:
        raise too_large()
    if length is None:  # chunked, or until the connection ends
        pieces = bytearray()
        while piece := response.read1(_READ_AT_ONCE_BYTES):
            pieces += piece
            if len(pieces) > MAX_CLIENT_ANSWER_BYTES:
                raise too_large()
        return pieces
    body = bytearray(length)
    view = memoryview(body)
    position = 0
    while position < length:
        count = response.readinto(view[position : position + _READ_AT_ONCE_BYTES])
        if not count:
            raise http.client.IncompleteRead(b"", length - position)
        position += count
    return body


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return error.reason or "TLS failed"
    if isinstance(error, http.client.IncompleteRead):
        return "the answer is not complete"
    if isinstance(error, http.client.HTTPException) and not isinstance(error, OSError):
        return "what came is no HTTP"
    return str(error) or type(error).__name__


# Connecting


def connect(endpoint: Endpoint, context: Callable[[], ssl.SSLContext], watch: Watch) -> Connection:
    """Open a connection.

    Args:
        endpoint: Where to.
        context: Returns the TLS settings; asked only for https.
        watch: The time that it has, TLS included.

    Raises:
        TryFailed: if none can be made.
        ConfigError: if no daemon runs on the data folder of a control channel.
    """
    if endpoint.control is not None:
        return _connect_control(endpoint, watch)
    line = _connect_tcp(endpoint, watch)
    if not endpoint.tls:
        return Connection(endpoint, line, "")
    try:
        line.settimeout(max(watch.connect_deadline - time.monotonic(), _MIN_WAIT_S))
        secured = context().wrap_socket(line, server_hostname=endpoint.address.host)
    except ssl.SSLCertVerificationError as error:
        line.close()
        raise untrusted(error) from None
    except OSError as error:
        line.close()
        raise tls_failed(endpoint, error) from None
    except BaseException:
        line.close()
        raise
    return Connection(endpoint, secured, "")


def _connect_tcp(endpoint: Endpoint, watch: Watch) -> socket.socket:
    host, port = endpoint.address
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[:MAX_RESOLVED_ADDRESSES]
    except (OSError, UnicodeError) as error:
        raise TryFailed(Fault.UNREACHABLE, f"{host!r} cannot be resolved ({_why(error)})") from None
    reason = "it has no address"
    for index, (family, kind, protocol, _, address) in enumerate(found):
        left_s = watch.connect_deadline - time.monotonic()
        line = socket.socket(family, kind, protocol)
        try:
            line.settimeout(max(left_s / (len(found) - index), _MIN_WAIT_S))
            line.connect(address)
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            line.close()
            reason = why_unreachable(error)
        except BaseException:
            line.close()
            raise
        else:
            return line
    raise TryFailed(Fault.UNREACHABLE, reason)


def _connect_control(endpoint: Endpoint, watch: Watch) -> Connection:
    address = endpoint.control_address()
    family = socket.AF_INET if address.unix is None else socket.AF_UNIX
    line = socket.socket(family, socket.SOCK_STREAM)
    try:
        line.settimeout(max(watch.connect_deadline - time.monotonic(), _MIN_WAIT_S))
        line.connect(address.unix or address.tcp or ())
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
        line.close()
        raise no_daemon(endpoint) from None
    except PermissionError:
        line.close()
        raise foreign_daemon(endpoint) from None
    except OSError as error:
        line.close()
        raise TryFailed(Fault.UNREACHABLE, f"cannot be reached ({_why(error)})") from None
    except BaseException:
        line.close()
        raise
    return Connection(endpoint, line, address.token)
