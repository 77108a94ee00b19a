"""What goes wrong in a first hour, provoked: each message that the pages explain is what is said.

`test_every_message_of_the_pages_is_provoked` holds the pages and these tests together: a message is
in a table "it says" of docs/first-hour.md or docs/troubleshooting.md if, and only if, a test here (or
the first hour itself) makes a device say it.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.first_hour.network import build_home_and_cloud, build_pair
from tests.first_hour.pages import messages, says
from tests.network.devices import Device, Done, Network, poll
from tests.packaging.conftest import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.slow, pytest.mark.e2e]

PAGES = [ROOT / "docs/first-hour.md", ROOT / "docs/troubleshooting.md"]
MESSAGES = {message for page in PAGES for message in messages(page)}
DIGITS = ROOT / "examples/digits"

OF_OTHERS = {
    "requires a different Python": "pip's, on an old Python",
    "ensurepip is not available": "Debian's, without its package for venv",
    "meshnode: command not found": "the shell's",
    "externally-managed-environment": "pip's, outside a venv",
    "curl: (28) …": "curl's",
    "error: there is no systemd on this machine; …": "tests/unit/cli/test_service.py",
    "error: systemd does not run … (…); …": "tests/unit/cli/test_service.py",
}
"""Messages that no device here can say, and whose they are or where they are tested."""


def heard(message: str, done: Done) -> None:
    """Check that a page explains this message, and that the output has it."""
    assert message in MESSAGES, f"no page explains {message!r}"
    assert says(message, done.output), f"not {message!r}:\n{done!r}"


@pytest.fixture
def meshnode(network: Network, installed: Path) -> Callable[..., list[Device]]:
    """Put the installed `meshnode` on the PATH of devices."""

    def prepare(*devices: Device) -> list[Device]:
        for device in devices:
            device.run(f"export PATH={installed}:$PATH")
        return list(devices)

    return prepare


def invite(device: Device, *options: str) -> str:
    device.run(f"meshnode invite -o invite {' '.join(options)}")
    return (device.home / "invite").read_text()


def alive(device: Device) -> set[str]:
    rows = [line.split() for line in device.run("meshnode nodes").output.splitlines()[1:]]
    return {row[0] for row in rows if row[1] == "alive"}


def test_firewalls_between_two_devices_are_told_apart(
    network: Network, meshnode: Callable[..., list[Device]]
) -> None:
    laptop, minipc = meshnode(*build_pair(network))
    laptop.run("meshnode join --detach --new")
    line = invite(laptop)
    laptop.nft("""table inet f { chain i {
            type filter hook input priority filter; tcp dport 8471 drop;
        }
        }""")
    done = minipc.run("meshnode join --detach -", stdin=line, fails=True)
    heard("…:8471: no answer (…)…", done)
    laptop.run("nft flush chain inet f i")
    laptop.run("nft add rule inet f i tcp dport 8471 reject with tcp reset")
    done = minipc.run("meshnode join --detach -", stdin=line, fails=True)
    heard("…:8471: connection refused (…)…", done)
    laptop.run("nft flush chain inet f i; nft add rule inet f i udp dport 8471 drop")
    minipc.run("meshnode join --detach -", stdin=line)

    def told() -> Done | None:
        done = minipc.run("meshnode logs")
        return done if "udp_blocked" in done.output else None

    heard("member.udp_blocked …", poll(told, 30, "it notices that no datagram comes through"))
    for device in (laptop, minipc):
        assert alive(device) == {"laptop", "minipc"}


def test_devices_that_share_only_ipv6_make_a_mesh(
    network: Network, meshnode: Callable[..., list[Device]]
) -> None:
    laptop, minipc = meshnode(*build_pair(network, version=6))
    laptop.run("meshnode join --detach --new")
    done = minipc.run("meshnode join --detach -", stdin=invite(laptop))
    assert "through [fd00:1::10]:8471" in done.output
    minipc.run(f"meshnode deploy {DIGITS}/digits.onnx --on laptop")
    assert "node=laptop" in minipc.run(f"meshnode infer digits {DIGITS}/images/7-7.png").output
    assert alive(laptop) == {"laptop", "minipc"}


def test_a_mesh_of_a_home_takes_a_box_in_through_a_port_that_is_forwarded_once(
    network: Network, meshnode: Callable[..., list[Device]]
) -> None:
    build_home_and_cloud(network)
    names = ("laptop", "cloud", "office", "router")
    laptop, cloud, office, router = (network.devices[name] for name in names)
    meshnode(laptop, cloud, office)
    laptop.run("meshnode join --detach --advertise 198.51.100.2:8471 --advertise 192.168.1.10:8471")
    line = invite(laptop)
    cloud.run("ufw allow 8471")
    advertise = "--advertise 203.0.113.7:8471"
    done = cloud.run(f"meshnode join --detach {advertise} -", stdin=line, fails=True)
    heard("…:8471: no route (…)…", done)
    router.nft(
        """table ip forwarding { chain in { type nat hook prerouting priority dstnat;
            iifname "wan" meta l4proto { tcp, udp } th dport 8471 dnat to 192.168.1.10;
        }
        }"""
    )
    cloud.run(f"meshnode join --detach {advertise} -", stdin=line)
    router.run("nft delete table ip forwarding")
    cloud.run("meshnode stop; meshnode join --detach")
    poll(lambda: alive(cloud) == {"cloud", "laptop"}, 60, "the laptop dials the box that came back")
    # The laptop can be reached no more; its invite names the box too, which can admit.
    office.run("meshnode join --detach -", stdin=invite(laptop))
    assert alive(office) >= {"office", "cloud"}


def test_what_newcomers_mistype_on_one_device(
    network: Network, meshnode: Callable[..., list[Device]]
) -> None:
    laptop, minipc = meshnode(*build_pair(network))
    heard("error: no meshnode daemon is running on …", laptop.run("meshnode nodes", fails=True))
    done = laptop.run("meshnode service install --user --data-dir ~/none", fails=True)
    heard("error: … belongs to no mesh yet; …", done)
    heard("… belongs to no mesh; there is nothing to leave.", laptop.run("meshnode leave"))
    taken = "import socket, time; s = socket.create_server(('127.0.0.1', {})); time.sleep(60)"
    for port, message in (
        (8471, "error: port 8471 of :: is in use by another program, …"),
        (8470, "error: port 8470 of 127.0.0.1 is in use by another program, …"),
    ):
        laptop.run(f'python3 -c "{taken.format(port)}" & echo $! > holder; sleep 0.3')
        done = laptop.run("meshnode join --detach --new", fails=True)
        heard(message, done)
        laptop.run("kill $(cat holder)")
    laptop.run("meshnode join --detach --new")
    done = laptop.run("meshnode join --detach", fails=True)
    heard("error: another meshnode daemon is running on …", done)
    heard("Found mesh … with …", minipc.run("meshnode join", fails=True))
    line = invite(laptop)
    done = minipc.run("meshnode join -", stdin=line[: len(line) // 2], fails=True)
    heard("error: the invite is damaged: …", done)
    short = invite(laptop, "--ttl 1s")
    time.sleep(1.5)
    heard("error: the invite expired …", minipc.run("meshnode join -", stdin=short, fails=True))
    minipc.run("meshnode join --detach --new")
    minipc.run("meshnode stop")
    done = minipc.run("meshnode join -", stdin=line, fails=True)
    heard("error: … belongs to mesh …, and the invite to mesh …", done)


def test_what_newcomers_give_to_a_model(
    network: Network, meshnode: Callable[..., list[Device]]
) -> None:
    laptop, minipc = meshnode(*build_pair(network))
    laptop.run("meshnode join --detach --new")
    for words, message in (
        (
            "deploy nix.onnx",
            "error: '…' does not exist; name a model folder, a model file or a URL",
        ),
        ("deploy notes.txt", "error: '…' is no model file: its name ends in none of …"),
        ("infer digts notes.txt", "error: no node of this mesh has a model '…'"),
        (
            "infer digits notes.txt",
            "error: '…' is of no form that is known, and no JSON (…); taken are JSON, …",
        ),
        ("join --max-memory 1X", "error: --max-memory '…' is not a size …"),
        ("join --advertise 203.0.113.7:port", "error: --advertise: …"),
        ("service install --user", "error: … runs on … by itself; stop it first …"),
        ("leave < /dev/null", "… holds the root key of its mesh, …"),
    ):
        laptop.write("notes.txt", "not a model, and no picture\n")
        if words.startswith("infer digits"):
            laptop.run(f"meshnode deploy {DIGITS}/digits.onnx")
        heard(message, laptop.run(f"meshnode {words}", fails=True))
    laptop.write(".local/share/meshnode/config.toml", 'regoin = "home"\n')
    done = laptop.run("meshnode config check", fails=True)
    heard("error: … unknown key 'regoin'; did you mean 'region'?", done)
    minipc.run("meshnode join --detach -", stdin=invite(laptop))
    minipc.run("meshnode stop")
    done = minipc.run("meshnode leave")
    heard("The daemon does not run, so the other nodes could not be told: …", done)


def test_a_gateway_that_others_reach_refuses_them_in_so_many_words(
    network: Network, meshnode: Callable[..., list[Device]]
) -> None:
    laptop, minipc = meshnode(*build_pair(network))
    laptop.run(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=mesh "
        "-addext subjectAltName=IP:192.168.1.10 -keyout key.pem -out cert.pem"
    )
    laptop.run("meshnode join --detach --new --http 0.0.0.0:8470")
    heard("the gateway at … has no TLS…", laptop.run("meshnode logs"))
    laptop.run("meshnode stop; meshnode join --detach --tls-cert cert.pem --tls-key key.pem")
    made = laptop.run("meshnode keys create phone --json").output
    key = (
        made.partition('"key": "')[2].partition('"')[0]
        or made.partition('"key":"')[2].partition('"')[0]
    )
    url = "https://192.168.1.10:8470"
    done = minipc.run(f"curl -sS {url}/v2/models", fails=True)
    heard("curl: (60) SSL certificate problem: …", done)
    done = minipc.run(f"MESHNODE_API_KEY={key} meshnode nodes --gateway {url}", fails=True)
    heard("error: …: its certificate is not trusted …", done)
    ask = f"curl -s --cacert {laptop.home}/cert.pem -w '%{{http_code}} ' -i"
    bearer = f"-H 'Authorization: Bearer {key}'"
    done = minipc.run(f"{ask} {url}/mesh/v1/nodes")
    heard("401 …", done)
    assert "unauthenticated" in done.output
    assert "200 OK" in minipc.run(f"{ask} {bearer} {url}/mesh/v1/nodes").output
    done = minipc.run(f"{ask} {bearer} -X POST {url}/mesh/v1/invites -d '{{}}'")
    heard("403 …", done)
    assert "forbidden" in done.output
    assert "scope" in done.output
    done = minipc.run(f"{ask} {bearer} -H 'Host: mesh.example.org' {url}/mesh/v1/nodes")
    heard("403 …", done)
    assert "--allow-host" in done.output
    wrong = "-H 'Authorization: Bearer mesh_aaaaaaaaaaaaaaaa_bbbb'"
    done = minipc.run(f"for i in $(seq 30); do {ask} {wrong} {url}/mesh/v1/nodes; done")
    heard("429 …", done)
    assert "throttled" in done.output
    assert "retry-after" in done.output.lower()
    laptop.run("meshnode stop")
    heard("curl: (7) Failed to connect …", minipc.run(f"curl -sS {url}", fails=True))


def test_every_message_of_the_pages_is_provoked() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    unheard = [text for text in sorted(MESSAGES) if f'"{text}"' not in source]
    assert unheard == []
