"""The question on a terminal: which of the meshes that were heard, or a new one?"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from typing import TYPE_CHECKING, Final

from meshnode.daemon.asking import doors_of
from meshnode.daemon.terminal import say

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from meshnode.daemon.asking import Door, FoundMesh

_LINE_BYTES: Final = 1024


class NothingChosen(Exception):
    """The person closed the input instead of choosing."""


def menu(meshes: Sequence[FoundMesh]) -> str:
    """Return the question: a number for each mesh, and the last for a new one."""
    lines = ["Meshes on this network, as their nodes say:", ""]
    for number, mesh in enumerate(meshes, 1):
        lines.append(f"  {number}  ask to join {mesh.mesh_id} with {mesh.names}")
    lines += [f"  {len(meshes) + 1}  found a new mesh", ""]
    return "\n".join(lines)


def chosen(text: str, meshes: Sequence[FoundMesh]) -> tuple[Door, ...] | None:
    """Return what an answer means: whom to ask, in order; nobody, to found a mesh; None if nothing.

    Args:
        text: A number of the menu, or the name of a node, which is asked first then.
        meshes: Those of the menu.
    """
    answer = text.strip()
    if answer.isascii() and answer.isdigit():
        number = int(answer[:9])
        if 1 <= number <= len(meshes):
            return doors_of(meshes[number - 1])
        return () if number == len(meshes) + 1 else None
    for mesh in meshes:
        doors = doors_of(mesh)
        first = tuple(door for door in doors if door.name == answer)
        if first:
            return first + tuple(door for door in doors if door.name != answer)
    return None


async def choose(
    meshes: Sequence[FoundMesh], read: Callable[[], Awaitable[str | None]] | None = None
) -> tuple[Door, ...]:
    """Ask which mesh is meant; return whom to ask to be admitted, nobody to found a mesh.

    Args:
        meshes: What was heard; at least one.
        read: Returns the next line that was typed, None at the end of the input.

    Raises:
        NothingChosen: at the end of the input.
    """
    say(menu(meshes))
    while True:
        _prompt(f"Which one? [1-{len(meshes) + 1}] ")
        line = await (read or read_line)()
        if line is None:
            raise NothingChosen
        found = chosen(line, meshes)
        if found is not None:
            return found
        if line.strip():
            say(
                f"Type a number from 1 to {len(meshes) + 1}, or the name of a node; Ctrl-C gives up."
            )


async def read_line() -> str | None:
    """Return the next line of the terminal, None at its end.

    A thread waits for it, which a cancelled wait leaves behind: it ends with the process. It reads the
    descriptor and not `sys.stdin`, whose lock it would hold when the interpreter shuts down.
    """
    loop = asyncio.get_running_loop()
    line: asyncio.Future[str | None] = loop.create_future()

    def settle(text: str | None) -> None:
        if not line.done():
            line.set_result(text)

    def wait() -> None:
        try:
            data = os.read(sys.stdin.fileno(), _LINE_BYTES)
        except (OSError, ValueError):  # gone, or closed
            data = b""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, data.decode(errors="replace") if data else None)

    threading.Thread(target=wait, name="terminal", daemon=True).start()
    return await line


def _prompt(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # nobody is there: the end of the input follows
        sys.stdout.write(text)
        sys.stdout.flush()
