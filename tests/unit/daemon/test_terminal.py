"""A terminal that goes away takes nothing with it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def run_without_readers(program: str) -> int:
    """Run a program whose standard output and error nobody reads any more; return its exit code."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        process = subprocess.Popen([sys.executable, "-c", program], stdout=writing, stderr=writing)
        return process.wait(30)
    finally:
        os.close(writing)


@pytest.mark.parametrize("action", ["say('x'); say('y')", "say('x'); let_go()", "let_go()"])
def test_printing_for_nobody_does_nothing(action: str) -> None:
    program = f"from meshnode.daemon.terminal import flush, let_go, say\n{action}\nflush()\n"
    assert run_without_readers(program) == 0


def test_a_closed_standard_output_is_as_good_as_none() -> None:
    program = "import sys\nfrom meshnode.daemon.terminal import say\nsys.stdout.close()\nsay('x')\n"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_who_reads_sees_all_that_was_said_and_then_the_end() -> None:
    program = (
        "import sys\nfrom meshnode.daemon.terminal import let_go, say\nsay('told')\n"
        "let_go()\nsay('untold')\nsys.stderr.write('untold')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, b"told", b"")
