"""What a node that serves nothing has in memory."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.e2e.conftest import Daemon

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.e2e

AT_ITS_END_IT_NAMES_ITS_MODULES = """
import atexit, sys
atexit.register(lambda: print("MODULES", *sorted(sys.modules)))
from meshnode.cli.main import main
main()
"""

ON_DEMAND = {
    "PIL": "images for `meshnode infer`",
    "cryptography": "the gateway's own TLS files",
    "google": "a model's config.pbtxt",
    "meshnode.client.calls": "commands that ask a daemon",
    "meshnode.client.mesh": "commands that ask a daemon",
    "multiprocessing": "nothing",
    "numpy": "models",
    "onnxruntime": "models",
    "plistlib": "`meshnode service`",
    "prometheus_client": "the first scrape",
    "rich": "tables in a terminal",
    "torch": "models",
    "tritonclient": "a model's config.pbtxt",
    "xml": "`meshnode service`",
    "zeroconf": "mDNS, which is off here",
}
"""Modules that an idle daemon does without, and what brings them."""


@pytest.mark.skipif(sys.platform == "win32", reason="it is ended by a signal")
def test_an_idle_daemon_imports_nothing_that_only_models_and_commands_need(tmp_path: Path) -> None:
    log = tmp_path / "log"
    data_dir = tmp_path / "alone"
    arguments = [
        "join", "--new", "--no-mdns", "--name", "alone", "--data-dir", str(data_dir),
        "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0",
    ]  # fmt: skip
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", AT_ITS_END_IT_NAMES_ITS_MODULES, *arguments],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    daemon = Daemon("alone", data_dir, process, log)
    try:
        daemon.wait_ready()
        assert daemon.request("GET", "/v2/health/live")[0] == 200
        daemon.signal(signal.SIGTERM)
        assert process.wait(40) == 0
    finally:
        process.kill()
        process.wait()
    (line,) = (line for line in daemon.output.splitlines() if line.startswith("MODULES "))
    loaded = set(line.split())
    assert {"aiohttp", "meshnode"} <= loaded
    assert {name: ON_DEMAND[name] for name in loaded & ON_DEMAND.keys()} == {}
