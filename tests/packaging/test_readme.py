"""The README's commands, run as they stand there, on an installed wheel."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.packaging.conftest import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.e2e]

TESTED_BY_CI_ITSELF = {"make demo", "make test"}


def commands() -> list[str]:
    """Return the commands of the README's shell blocks, a quoted argument over lines as one."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = []
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        pending = ""
        for line in block.splitlines():
            pending += line + "\n"
            if pending.count("'") % 2 == 0:
                found.append(re.sub(r"\s+# .*", "", pending).strip())
                pending = ""
    return found


class Device:
    """One device: a data folder, ports of its own, and the daemon that the README starts."""

    def __init__(self, name: str, folder: Path, site: Path) -> None:
        self.folder = folder / name
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(site),
            "MESHNODE_DATA_DIR": str(self.folder),
            "COLUMNS": "200",
        }
        self.daemon: subprocess.Popen[str] | None = None
        self.log = folder / f"{name}.log"

    def join(self, *arguments: str) -> None:
        """Run `meshnode join`; only its ports, name and mDNS differ from what a reader types."""
        local = ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--no-mdns"]
        with self.log.open("w") as output:
            self.daemon = subprocess.Popen(
                [sys.executable, "-Pm", "meshnode", "join", *arguments, *local,
                 "--name", self.folder.name],
                env=self.environment, stdout=output, stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip
        self.wait_for(r"HTTP  (\S+)")

    def wait_for(self, pattern: str) -> str:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            found = re.search(pattern, self.log.read_text())
            if found:
                return found[1]
            time.sleep(0.05)
        pytest.fail(f"{pattern!r} did not appear in:\n{self.log.read_text()}")

    def run(self, command: str) -> str:
        words = shlex.split(command)
        if words[0] == "meshnode":
            words = [sys.executable, "-Pm", *words]
        done = subprocess.run(
            words, cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def stop(self) -> None:
        if self.daemon is not None and self.daemon.poll() is None:
            self.daemon.send_signal(signal.SIGTERM)
            try:
                self.daemon.wait(10)
            except subprocess.TimeoutExpired:
                self.daemon.kill()
                self.daemon.wait()


@pytest.fixture
def devices(site: Path, tmp_path: Path) -> Iterator[tuple[Device, Device]]:
    pair = Device("laptop", tmp_path, site), Device("mini-pc", tmp_path, site)
    yield pair
    for device in pair:
        device.stop()


@pytest.mark.skipif(shutil.which("curl") is None, reason="the README's commands need curl")
def test_every_command_of_the_readme_works_in_its_order(devices: tuple[Device, Device]) -> None:
    first, second = devices
    said: dict[str, str] = {}
    for command in commands():
        if command in TESTED_BY_CI_ITSELF:
            continue
        if command == "meshnode join":
            first.join()
        elif command == "meshnode join mesh1…":
            second.join(first.wait_for(r"meshnode join (mesh1\S+)"))
        elif command.startswith(("meshnode ", "curl ")):
            gateway = first.wait_for(r"HTTP  http://(\S+)")
            said[command] = first.run(command.replace("127.0.0.1:8470", gateway))
        else:
            pytest.fail(f"the README has a new kind of command: {command!r}; run it here too")
    outputs = list(said.items())
    assert any("mini-pc" in output for command, output in outputs if command == "meshnode nodes")
    assert any('"label"' in output for command, output in outputs if "/infer -d" in command)
    assert any("label: 7" in output for command, output in outputs if command.endswith("7-7.png"))


def test_the_readme_names_the_accuracy_that_the_script_printed() -> None:
    accuracy = r"accuracy on \d+ held-out digits: [\d.]+% \(\d+ right\)"
    here = re.search(accuracy, (ROOT / "README.md").read_text(encoding="utf-8"))
    there = re.search(accuracy, (ROOT / "examples/digits/README.md").read_text(encoding="utf-8"))
    assert here
    assert there
    assert here[0] == there[0]
