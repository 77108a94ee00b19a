"""Why a dial failed, told so that people know what to look at."""

from __future__ import annotations

import errno
import socket
import ssl

import pytest

from meshnode.errors import HandshakeError
from meshnode.net.reachability import dial_reason, said


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (TimeoutError(), "no answer (a firewall"),
        (OSError(errno.ETIMEDOUT, "x"), "no answer (a firewall"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "x"), "connection refused (the device answers"),
        (OSError(errno.EHOSTUNREACH, "x"), "no route"),
        (OSError(errno.ENETUNREACH, "x"), "no route"),
        (OSError(errno.EHOSTDOWN, "x"), "no route"),
        (OSError(errno.EADDRNOTAVAIL, "x"), "no route"),
        (PermissionError(errno.EPERM, "x"), "a firewall of this device"),
        (socket.gaierror(socket.EAI_NONAME, "x"), "the name is not known"),
        (socket.gaierror(socket.EAI_AGAIN, "x"), "cannot be looked up now"),
        (ConnectionResetError(errno.ECONNRESET, "x"), "Connection reset by peer"),
        (ssl.SSLError(1, "wrong version"), "wrong version"),
        (HandshakeError("it is another node"), "it is another node"),
    ],
)
def test_each_cause_has_its_own_words(error: Exception, says: str) -> None:
    assert says in dial_reason(error)


def test_an_error_without_words_is_still_said() -> None:
    assert said(OSError()) == "no answer in time"
    assert said(ValueError()) == "ValueError"
