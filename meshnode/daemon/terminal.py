"""What a daemon says to the person who started it, for as long as there is one.

A terminal may go at any time: a closed ssh session, a window that is shut, a killed launcher. Writing
to it fails then (EPIPE, EIO), and a daemon goes on all the same, with its log file.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TextIO


def say(text: str) -> None:
    """Print a line for the person who started the daemon; nobody may be there any more."""
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except (OSError, ValueError):  # gone, or closed
        _go_nowhere(sys.stdout)


def progress(text: str) -> None:
    """Show a line in the place of the one that this showed before; end it with `say("")`."""
    try:
        sys.stdout.write(f"\r{text}\x1b[K")  # what a longer one before has left is cleared
        sys.stdout.flush()
    except (OSError, ValueError):
        _go_nowhere(sys.stdout)


def flush() -> None:
    """Bring out what was printed, as far as somebody is there to read it."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            _go_nowhere(stream)


def let_go() -> None:
    """Leave the terminal, or the pipe that stands for it; whoever reads it sees its end."""
    flush()
    for stream in (sys.stderr, sys.stdout):  # a launcher waits for the end of standard output
        _go_nowhere(stream)


def _go_nowhere(stream: TextIO) -> None:
    """Lead a stream to nowhere: what it still holds would fail again, at the latest at exit."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, stream.fileno())
        finally:
            os.close(nowhere)
        stream.flush()
