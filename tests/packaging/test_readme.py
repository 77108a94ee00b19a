"""The README's commands, run as they stand there, on an installed wheel."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING

import pytest
from typer.main import get_command

from meshnode.cli.main import MeshGroup, app
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


def program() -> str:
    """Return the README's one Python program."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (found,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return str(found)


class Device:
    """One device: a data folder, ports of its own, and the daemon that the README starts."""

    def __init__(self, name: str, folder: Path, site: Path) -> None:
        self.folder = folder / name
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(site),
            "MESHNODE_DATA_DIR": str(self.folder),
            "MESHNODE_LISTEN": "127.0.0.1:0",
            "MESHNODE_HTTP": "127.0.0.1:0",
            "MESHNODE_MDNS": "false",
            "MESHNODE_NAME": name,
            "COLUMNS": "200",
        }

    def run(self, command: str) -> str:
        words = shlex.split(command)
        if words[0] == "meshnode":
            words = [sys.executable, "-Pm", *words]
        return run_in(words, self.environment)

    def python(self, program: str, gateway: str) -> str:
        environment = {**self.environment, "MESHNODE_GATEWAY": f"http://{gateway}"}
        return run_in([sys.executable, "-Pc", program], environment)

    def stop(self) -> None:
        if self.folder.exists():
            self.run("meshnode stop --now")


def run_in(words: list[str], environment: dict[str, str]) -> str:
    # Into a file: a daemon that was started would hold a pipe open.
    with tempfile.TemporaryFile("w+") as output:
        done = subprocess.run(
            words, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, timeout=60, check=False,
        )  # fmt: skip
        output.seek(0)
        text = output.read()
    assert done.returncode == 0, f"{words}\n{text}"
    return text


@pytest.fixture
def devices(site: Path, tmp_path: Path) -> Iterator[tuple[Device, Device]]:
    pair = Device("laptop", tmp_path, site), Device("mini-pc", tmp_path, site)
    yield pair
    for device in pair:
        device.stop()


@pytest.mark.skipif(shutil.which("curl") is None, reason="the README's commands need curl")
def test_every_command_of_the_readme_works_in_its_order(devices: tuple[Device, Device]) -> None:
    """As a reader types them, but for the ports, the names and mDNS, which variables choose."""
    first, second = devices
    said: dict[str, str] = {}
    invite = gateway = answer = ""
    for command in commands():
        if command in TESTED_BY_CI_ITSELF:
            continue
        if command == "meshnode join --detach":
            welcome = first.run(command)
            (invite,) = re.findall(r"meshnode join (mesh1\S+)", welcome)
            (gateway,) = re.findall(r"HTTP  http://(\S+)", welcome)
        elif command == "meshnode join --detach mesh1…":
            second.run(command.replace("mesh1…", invite))
        elif command.startswith(("meshnode ", "curl ")):
            said[command] = first.run(command.replace("127.0.0.1:8470", gateway))
            if command.startswith("meshnode deploy"):
                answer = first.python(program(), gateway)
        else:
            pytest.fail(f"the README has a new kind of command: {command!r}; run it here too")
    outputs = list(said.items())
    assert any("mini-pc" in output for command, output in outputs if command == "meshnode nodes")
    assert any('"label"' in output for command, output in outputs if "/infer -d" in command)
    assert any("label: 7" in output for command, output in outputs if command.endswith("7-7.png"))
    assert re.fullmatch(r"\[\d\]\n", answer)


def test_the_readme_names_the_accuracy_that_the_script_printed() -> None:
    accuracy = r"accuracy on \d+ held-out digits: [\d.]+% \(\d+ right\)"
    here = re.search(accuracy, (ROOT / "README.md").read_text(encoding="utf-8"))
    there = re.search(accuracy, (ROOT / "examples/digits/README.md").read_text(encoding="utf-8"))
    assert here
    assert there
    assert here[0] == there[0]


def test_the_readme_has_every_command() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.partition("## Commands")[2].partition("##")[0]
    named = set(re.findall(r"`(?:meshnode )?([a-z]+)[^`]*`", table))
    group = get_command(app)
    assert isinstance(group, MeshGroup)
    assert set(group.commands) - named == set()


@pytest.mark.parametrize(
    "page", ["README.md", "docs/first-hour.md", "docs/troubleshooting.md", "CONTRIBUTING.md"]
)
def test_the_links_between_pages_lead_somewhere(page: str) -> None:
    file = ROOT / page
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", file.read_text(encoding="utf-8"))
    assert [link for link in links if not (file.parent / link).exists()] == []
