"""`meshnode doctor` on hosts where something really is wrong: it names that, and nothing else.

Two hosts are a mesh, a third founded one of its own, a fourth belongs to none.
"""

from __future__ import annotations

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from tests.network.devices import poll
from tests.network.lan import PORT, Host, Lan

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.slow, pytest.mark.e2e]


class Four:
    """The four hosts."""

    def __init__(self, hosts: list[Host]) -> None:
        self.one, self.two, self.foreign, self.newcomer = hosts

    def whole(self) -> bool:
        return all(host.sees("one", "two") for host in (self.one, self.two))


@pytest.fixture(scope="module")
def started(lan: Lan) -> Four:
    four = Four(lan.add("one", "two", "foreign", "newcomer"))
    four.one.join("--new").ready()
    four.two.join(four.one.invite()).ready()
    four.foreign.join("--new").ready()
    return four


@pytest.fixture
def four(started: Four, lan: Lan) -> Iterator[Four]:
    """Begin each test with a whole mesh of two and no firewall."""
    poll(started.whole, 60, "the two see each other")
    yield started
    lan.heal()


def tried(host: Host, invite: str) -> set[str]:
    return host.faults("--invite", invite)


# An invite, on a device that has no mesh yet


def test_an_invite_that_works_is_found_to_work_and_is_not_used(four: Four) -> None:
    invite = four.one.invite()
    found = four.newcomer.doctor("--invite", invite)
    assert found["ok"] == {"reachable", "invite"}
    assert not found["fault"]
    assert set(four.one.nodes()) == {"one", "two"}
    assert not four.newcomer.data_dir.exists()


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        (f"tcp dport {PORT} drop", "no_answer"),
        (f"tcp dport {PORT} reject with tcp reset", "port_closed"),
    ],
)
def test_a_firewall_on_the_inviting_host_is_named_by_what_it_does(
    four: Four, rule: str, code: str
) -> None:
    invite = four.one.invite()
    for host in (four.one, four.two):  # an invite names another member too, who could admit
        host.block(f"ct state new {rule}")
    assert tried(four.newcomer, invite) == {code}


def test_a_firewall_of_the_device_itself_is_not_blamed_on_the_other(four: Four) -> None:
    invite = four.one.invite()
    four.newcomer.block_out(f"meta l4proto {{ tcp, udp }} th dport {PORT} drop")
    assert tried(four.newcomer, invite) == {"blocked_here"}


def test_an_expired_invite_is_named_although_its_address_answers(four: Four) -> None:
    invite = four.one.invite(ttl_s=1)
    time.sleep(2)
    assert tried(four.newcomer, invite) == {"expired"}


def test_an_invite_that_others_have_used_up_is_named(four: Four) -> None:
    invite = four.one.invite(uses=1)
    assert tried(four.newcomer, invite) == set()
    guest = four.newcomer
    guest.join(invite).ready()
    try:
        assert tried(four.foreign, invite) == {"used_up", "wrong_mesh"}
    finally:
        guest.run("leave --yes")


def test_an_invite_to_another_mesh_than_the_devices_own_is_named(four: Four) -> None:
    assert tried(four.foreign, four.one.invite()) == {"wrong_mesh"}


# An address


def test_addresses_that_lead_to_no_member_are_named_for_what_they_are(four: Four) -> None:
    cases: dict[str, set[str]] = {
        f"203.0.113.7:{PORT}": {"not_routable"},
        f"10.7.0.200:{PORT}": {"no_answer", "not_routable"},  # nobody answers for it on the LAN
        "10.7.0.12:22": {"port_closed"},
        f"nobody.invalid:{PORT}": {"unknown_name", "no_name_server"},
        f"10.7.0.13:{PORT}": {"wrong_mesh"},
    }
    with ThreadPoolExecutor() as pool:  # most of it is waiting
        found = dict(zip(cases, pool.map(four.one.faults, cases), strict=True))
    for address, codes in cases.items():
        assert len(found[address]) == 1, address
        assert found[address] <= codes, address


def test_a_web_server_is_not_taken_for_a_node(four: Four) -> None:
    four.two.device.run("python3 -m http.server 9000 > web.log 2>&1 & echo $! > web; sleep 1")
    try:
        assert four.one.faults("10.7.0.12:9000") == {"other_protocol"}
    finally:
        four.two.device.run("kill $(cat web)")


def test_a_device_without_a_mesh_finds_nodes_and_is_told_that_it_has_none(four: Four) -> None:
    with ThreadPoolExecutor() as pool:  # most of it is waiting
        asked = pool.submit(four.newcomer.doctor, f"10.7.0.11:{PORT}")
        found = four.newcomer.doctor()
        at_address = asked.result()
    assert (found["fault"], found["ok"]) == ({"no_mesh"}, {"mdns"})
    assert (at_address["fault"], at_address["ok"]) == ({"no_mesh"}, {"reachable"})
    code, output = four.newcomer.run("doctor two")
    assert code == 2
    assert "give an address" in output


# Two members


def test_datagrams_that_pass_neither_way_are_named_while_the_link_stands(four: Four) -> None:
    four.two.block(f"udp dport {PORT} drop")
    four.two.block_out(f"udp dport {PORT} drop")
    found = four.one.doctor("two")
    assert found["fault"] == {"udp_blocked"}
    assert {"linked", "reachable"} <= found["ok"]


def test_a_host_that_hears_no_multicast_gets_a_note_while_a_link_stands(four: Four) -> None:
    four.two.block_out("udp dport 5353 drop")
    found = four.one.doctor("two")
    assert found["fault"] == set()
    assert "mdns_silent" in found["note"]


def test_a_host_that_others_cannot_dial_is_told_so_by_them(four: Four) -> None:
    four.two.block(f"tcp dport {PORT} ct state new drop")
    found = four.two.doctor("one")
    assert found["fault"] == set()
    assert "not_reached" in found["note"]


def test_a_node_that_does_not_run_is_named_from_both_sides(four: Four) -> None:
    four.two.end()
    try:
        assert four.one.faults("two") == {"port_closed"}
        found = four.two.doctor("one")
        assert found["fault"] == {"not_running"}
        assert "reachable" in found["ok"]
    finally:
        four.two.join().ready()


def test_the_gateway_says_the_same_as_the_command(four: Four) -> None:
    with ThreadPoolExecutor() as pool:
        typed = pool.submit(four.one.run, "doctor two")
        document: Any = four.one.client.post("/mesh/v1/doctor", {"peer": "two"}, timeout_s=60)
        code, output = typed.result()
    assert document["subject"] == "two"
    assert {check["code"] for check in document["checks"]} >= {"linked", "udp"}
    assert "✔ link: a link to two stands" in output
    assert (code, output.splitlines()[-1]) == (0, "Nothing to mend was found.")


def test_a_copied_data_folder_is_found_out_before_its_copy_does_harm(four: Four) -> None:
    """It comes last: a key that ran twice is spoken of for a while."""
    poll((four.two.data_dir / "state/members").exists, 30, "two has written down whom it met")
    copy = four.newcomer.data_dir
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(four.two.data_dir, copy, ignore=shutil.ignore_patterns("control*", "lock"))
    try:
        assert four.newcomer.faults("one") == {"not_running", "twin"}
        assert four.one.faults("two") == {"twin"}
        assert "runs in two places" in four.two.run("doctor")[1]
    finally:
        shutil.rmtree(copy)
