"""Which mesh is meant: what was heard, what was typed, what `--ask` says."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING

import pytest

from meshnode.daemon.asking import Door, doors_named, doors_of, is_only_an_address, meshes_of
from meshnode.daemon.choosing import NothingChosen, choose, chosen, menu, read_line
from meshnode.errors import ConfigError
from meshnode.net.mdns import Announcement
from meshnode.options import DEFAULT_LISTEN
from meshnode.trust.pairing import ANY_MESH
from meshnode.trust.records import MeshId
from meshnode.types import Address, NodeId

if TYPE_CHECKING:
    from collections.abc import Iterator

ONE, TWO = "1a2b" * 8, "1a2c" * 8


def heard(name: str, mesh: str, host: str = "192.0.2.1") -> Announcement:
    return Announcement(NodeId(name.ljust(32, "a")), mesh, name, (Address(host, 4000),))


MESHES = meshes_of(
    [heard("zeta", ONE), heard("beta", TWO, "192.0.2.2"), heard("alpha", ONE, "192.0.2.3")]
)


def door(name: str, mesh: str, host: str) -> Door:
    return Door(MeshId(mesh), NodeId(name.ljust(32, "a")), name, (Address(host, 4000),))


ALPHA, ZETA = door("alpha", ONE, "192.0.2.3"), door("zeta", ONE, "192.0.2.1")
BETA = door("beta", TWO, "192.0.2.2")


def test_what_was_heard_is_grouped_by_mesh_in_an_order_that_stays() -> None:
    assert [mesh.mesh_id for mesh in MESHES] == [ONE, TWO]
    assert doors_of(MESHES[0]) == (ALPHA, ZETA)
    assert MESHES[0].names == "alpha (192.0.2.3:4000), zeta (192.0.2.1:4000)"


def test_a_large_mesh_shows_some_of_its_nodes() -> None:
    (mesh,) = meshes_of(heard(f"node-{number:02d}", ONE) for number in range(20))
    assert mesh.names.endswith("node-07 (192.0.2.1:4000), 12 more")


def test_the_menu_numbers_the_meshes_and_a_new_one_last() -> None:
    assert menu(MESHES).splitlines()[2:5] == [
        f"  1  ask to join {ONE} with alpha (192.0.2.3:4000), zeta (192.0.2.1:4000)",
        f"  2  ask to join {TWO} with beta (192.0.2.2:4000)",
        "  3  found a new mesh",
    ]


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("1\n", (ALPHA, ZETA)), (" 2 ", (BETA,)), ("3", ()), ("zeta", (ZETA, ALPHA)),
        ("0", None), ("4", None), ("", None), ("nobody", None), ("-1", None), ("²", None),
        ("9" * 50, None), ("1 2", None),
    ],
)  # fmt: skip
def test_an_answer_is_a_number_or_the_node_to_ask_first(
    typed: str, expected: tuple[Door, ...] | None
) -> None:
    assert chosen(typed, MESHES) == expected


async def test_the_question_is_repeated_until_the_answer_means_something(
    capsys: pytest.CaptureFixture[str],
) -> None:
    answers = iter(["what?\n", "\n", "7\n", "2\n"])

    async def read() -> str:
        return next(answers)

    assert await choose(MESHES, read) == (BETA,)
    output = capsys.readouterr().out
    assert output.count("Which one? [1-3]") == 4
    assert output.count("Type a number from 1 to 3") == 2


async def test_the_end_of_the_input_chooses_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    async def read() -> None:
        return None

    with pytest.raises(NothingChosen):
        await choose(MESHES, read)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A terminal in place of standard input; the side of the person."""
    import pty  # not there on Windows

    person, program = pty.openpty()
    with os.fdopen(program, "r") as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        yield person
        os.write(person, b"\n\n")  # whoever still waits goes home
    os.close(person)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
async def test_a_line_is_read_from_the_terminal_and_the_loop_runs_on(terminal: int) -> None:
    reading = asyncio.ensure_future(read_line())
    await asyncio.sleep(0.05)
    assert not reading.done()
    os.write(terminal, b"zeta\n")
    assert await asyncio.wait_for(reading, 5) == "zeta\n"
    os.write(terminal, b"\x04")  # Ctrl-D
    assert await asyncio.wait_for(read_line(), 5) is None


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
async def test_a_wait_that_is_cancelled_leaves_nothing_that_raises(terminal: int) -> None:
    reading = asyncio.ensure_future(read_line())
    await asyncio.sleep(0.05)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    os.write(terminal, b"too late\n")
    await asyncio.sleep(0.05)
    assert reading.cancelled()


async def test_a_terminal_that_is_gone_is_the_end_of_the_input(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Closed:
        def fileno(self) -> int:
            raise ValueError("closed")

    monkeypatch.setattr(sys, "stdin", Closed())
    assert await asyncio.wait_for(read_line(), 5) is None


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (ONE, (ALPHA, ZETA)), (ONE[:4], (ALPHA, ZETA)), ("1A2C", (BETA,)), ("beta", (BETA,)),
        ("alpha", (ALPHA,)),
    ],
)  # fmt: skip
def test_ask_names_a_mesh_by_the_beginning_of_its_id_or_a_node_by_its_name(
    target: str, expected: tuple[Door, ...]
) -> None:
    assert doors_named(target, MESHES) == expected


@pytest.mark.parametrize(
    ("target", "address"),
    [
        ("192.0.2.9:4000", Address("192.0.2.9", 4000)),
        ("host.example", Address("host.example", DEFAULT_LISTEN.port)),
        ("[2001:db8::1]:4000", Address("2001:db8::1", 4000)),
        ("localhost", Address("localhost", DEFAULT_LISTEN.port)),
    ],
)
def test_ask_names_a_node_by_an_address_whose_mesh_is_not_known(
    target: str, address: Address
) -> None:
    expected = (Door(ANY_MESH, None, str(address), (address,), is_heard=False),)
    assert doors_named(target, MESHES) == expected
    assert is_only_an_address(target) == (":" in target)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("1a2", "no mesh and no node called 1a2"),
        ("dead", "no mesh and no node called dead"),
        ("nobody", r"no mesh and no node called nobody was heard .*--ask HOST:PORT"),
        ("host:port", "--ask"),
        ("1A2B1A2B1A2B1A2B1A2B1A2B1A2B1A2B1", "no mesh and no node"),
    ],
)
def test_ask_that_means_nothing_here_says_what_was_heard(target: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        doors_named(target, MESHES)


def test_ask_that_means_several_says_which() -> None:
    twins = meshes_of([heard("alpha", "1a2b" + "0" * 28), heard("alpha", "1a2b" + "1" * 28)])
    with pytest.raises(ConfigError, match="several meshes begin with 1a2b"):
        doors_named("1a2b", twins)
    with pytest.raises(ConfigError, match="several nodes are called alpha"):
        doors_named("alpha", twins)
