"""docs/first-hour.md as a newcomer follows it: each command on the device that it is for.

The commands run as they are printed. These alone are put in their place, as a reader would:

| printed | put in its place |
|---|---|
| `mesh1…` | the invite that was printed last, on whichever device |
| `mesh_…` | the API key that was printed last |
| `123456` | the code that was shown last |
| a last word `-` | the same `-`; that invite is typed on standard input |

`git`, `sudo`, `ufw`, `scp` and `systemctl` are the small programs of `stand_ins/`, since the devices have
no internet, no other user and no systemd; pip finds its requirements among those of the tests.
Only the laptop runs chapter 1; the others have its installation.
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.first_hour.network import build_home_and_cloud
from tests.first_hour.pages import Step, missing, steps
from tests.network.devices import Begun, Device, Done, Network, poll
from tests.packaging.conftest import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.slow, pytest.mark.e2e]

PAGE = ROOT / "docs/first-hour.md"
LOOK_AGAIN_S = 40.0
_READS = ("meshnode nodes", "meshnode models", "meshnode status", "meshnode trust show", "export ")


class Reader:
    """Somebody who follows a page, and remembers the secrets that were shown last."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.secrets: dict[str, str] = {}
        self._begun: dict[str, Begun] = {}

    def follow(self, step: Step) -> None:
        device = self.network.devices[step.device]
        if step.language == "toml":
            device.write(step.file, step.text + "\n")
            return
        text = step.text
        for printed, secret in self.secrets.items():
            text = text.replace(printed, secret)
        stdin = self.secrets.get("mesh1…", "") if text.endswith(" -") else ""
        if step.language == "python":
            device.write("program.py", text + "\n")
            text = "python ~/program.py"
        if (begun := self._begun.pop(step.device, None)) is not None:
            done = begun.wait()
            assert done.code == 0, f"{done!r}\n{self.network.log_ends()}"
        if step.waits:
            begun = self._begun[step.device] = device.begin(text)
            done = self._look(step, begun.so_far)
        else:
            done = self._look(step, lambda: device.run(text, stdin=f"{stdin}\n", fails=step.fails))
        for printed, pattern in (
            ("mesh1…", r"(mesh1[A-Za-z0-9_-]{40,})"),
            ("mesh_…", r"(mesh_\w{20,})"),
            ("123456", r"meshnode approve (\d{6})"),
        ):
            for found in re.findall(pattern, done.output):
                self.secrets[printed] = found

    def _look(self, step: Step, act: Callable[[], Done]) -> Done:
        """Return what there is to see once it is what the page says."""
        only_reads = all(line.startswith(_READS) for line in step.text.splitlines())
        deadline = time.monotonic() + LOOK_AGAIN_S
        while True:
            done = act()
            lacking = missing(step.expected, done.output)
            if lacking is None:
                return done
            # What one node tells, another knows a moment later: a reader looks again.
            again = (only_reads or step.waits) and time.monotonic() < deadline
            assert again, (
                f"{step}\n\nlacks the line {lacking!r}:\n{done!r}\n{self.network.log_ends()}"
            )
            time.sleep(0.3)


@pytest.fixture
def reader(network: Network) -> Reader:
    build_home_and_cloud(network)
    laptop = network.devices["laptop"]
    for name in ("minipc", "cloud", "office"):
        network.devices[name].run(f"export PATH={laptop.home}/meshnode-env/bin:$PATH")
    return Reader(network)


def test_every_command_of_the_first_hour_works_on_its_device(reader: Reader) -> None:
    after: dict[str, Callable[[Network], None]] = {
        "meshnode deploy examples/digits/digits.onnx --replicas 3": cloud_box_fails_and_comes_back,
    }
    found = steps(PAGE)
    assert {step.device for step in found if step.device} == {"laptop", "minipc", "cloud", "office"}
    for step in found:
        if not step.device:
            continue
        reader.follow(step)
        for command, check in list(after.items()):
            if command in step.text:
                check(reader.network)
                del after[command]
    assert not after, "the page no longer has these commands"
    for device in reader.network.devices.values():
        left = [_command_line(pid) for pid in device.processes()]
        assert left == [], f"{device.name} still runs something"


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except FileNotFoundError:
        return "(ended while it was looked at)"


def cloud_box_fails_and_comes_back(network: Network) -> None:
    """Pull the plug of the box: the home goes on at once; when it is back, so is its node."""
    laptop, cloud = network.devices["laptop"], network.devices["cloud"]
    assert states(laptop) == {"laptop": "alive", "minipc": "alive", "cloud": "alive"}
    cloud.power_off()
    for _ in range(3):
        laptop.run("meshnode infer digits examples/digits/images/7-7.png")
    poll(lambda: states(laptop)["cloud"] == "dead", 20, "the laptop calls the box dead")
    assert states(laptop)["minipc"] == "alive"
    cloud.run("meshnode join --detach")
    poll(lambda: states(laptop)["cloud"] == "alive", 20, "the box is back")


def states(device: Device) -> dict[str, str]:
    rows = [line.split() for line in device.run("meshnode nodes").output.splitlines()[1:]]
    return {row[0]: row[1] for row in rows}
