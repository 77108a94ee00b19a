"""What `meshnode doctor` says of what it saw."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from meshnode.diagnosis.checks import Check, Code, Result, has_fault
from meshnode.diagnosis.link import CLOCK_NOTE_S
from meshnode.diagnosis.subjects import (
    diagnose_address,
    diagnose_evicted,
    diagnose_invite,
    diagnose_outsider,
    diagnose_pair,
    diagnose_self,
    diagnose_stopped,
    diagnose_stranger,
)
from meshnode.limits import MAX_CLOCK_SKEW_S
from meshnode.observations import (
    AddressSeen,
    CheckupSeen,
    Datagrams,
    InviteSeen,
    Multicast,
    Outcome,
    PairSeen,
    SelfSeen,
    Trial,
)
from meshnode.trust.reasons import Reason
from meshnode.types import NodeState

ADDRESS = "192.168.1.20:8471"
REACHED = Trial(ADDRESS, Outcome.ANSWERED, is_near=True, ahead_s=0.1)
PASSING = Datagrams(sent=6, arrived_there=1, arrived_here=1)
HEALTHY = CheckupSeen(0.0, "1.0", PASSING, (Trial("192.168.1.10:8471", Outcome.ANSWERED),))
LINKED = PairSeen(
    "minipc", "1.0", is_linked=True, rtt_s=0.0004, trials=(REACHED,), checkup=HEALTHY,
    mdns=Multicast.HEARD,
)  # fmt: skip
INVITE = InviteSeen("aa", "2026-01-01T00:00:00Z", False, "", (REACHED,))


def apart(trial: Trial) -> PairSeen:
    return PairSeen("minipc", "1.0", trials=(trial,))


def found(checks: list[Check]) -> dict[Code, Result]:
    return {check.code: check.result for check in checks}


def only(checks: list[Check], code: Code) -> Check:
    (check,) = [check for check in checks if check.code is code]
    return check


def test_a_pair_that_works_has_nothing_to_mend_and_every_check_says_what_was_tried() -> None:
    checks = diagnose_pair(LINKED)
    assert not has_fault(checks)
    assert found(checks) == dict.fromkeys((Code.LINKED, Code.REACHABLE, Code.UDP, Code.MDNS), "ok")
    assert "round trip 0.4 ms" in only(checks, Code.LINKED).says
    assert all(check.says and check.about and not check.to_do for check in checks)


@pytest.mark.parametrize(
    ("trial", "code"),
    [
        (Trial(ADDRESS, Outcome.CLOSED), Code.PORT_CLOSED),
        (Trial(ADDRESS, Outcome.NO_ANSWER, is_near=True), Code.NO_ANSWER),
        (Trial("203.0.113.7:8471", Outcome.NO_ANSWER), Code.NO_ANSWER),
        (Trial(ADDRESS, Outcome.NO_ANSWER), Code.NOT_ROUTABLE),
        (Trial("203.0.113.7:8471", Outcome.NO_ROUTE), Code.NOT_ROUTABLE),
        (Trial("127.0.0.1:8471", Outcome.NOT_DIALLED, is_near=True), Code.NOT_ROUTABLE),
        (Trial(ADDRESS, Outcome.BLOCKED_HERE), Code.BLOCKED_HERE),
        (Trial("minipc.example:8471", Outcome.UNKNOWN_NAME), Code.UNKNOWN_NAME),
        (Trial("minipc.example:8471", Outcome.NO_NAME_SERVER), Code.NO_NAME_SERVER),
        (Trial(ADDRESS, Outcome.MUTE), Code.HANGS),
        (Trial(ADDRESS, Outcome.OTHER_PROTOCOL), Code.OTHER_PROTOCOL),
        (Trial(ADDRESS, Outcome.HUNG_UP), Code.HUNG_UP),
        (Trial(ADDRESS, Outcome.REFUSED, Reason.WRONG_MESH, "no"), Code.WRONG_MESH),
        (Trial(ADDRESS, Outcome.REFUSED, Reason.WRONG_NODE, "it is x"), Code.WRONG_NODE),
        (Trial(ADDRESS, Outcome.REFUSED, Reason.SELF, "no"), Code.WRONG_NODE),
        (Trial(ADDRESS, Outcome.REFUSED, Reason.VERSION, "speaks 2 to 3"), Code.VERSION),
        (Trial(ADDRESS, Outcome.REFUSED, Reason.EXPIRED, "it expired"), Code.EXPIRED),
        (Trial(ADDRESS, Outcome.REFUSED, Reason.CLOCK, "set clocks"), Code.CLOCK),
        (Trial(ADDRESS, Outcome.REFUSED, Reason.TWIN, "copied"), Code.TWIN),
        (Trial(ADDRESS, Outcome.REFUSED, "revoked", "it was evicted"), Code.REVOKED),
        (Trial(ADDRESS, Outcome.REFUSED, "used_up", "by others"), Code.USED_UP),
        (Trial(ADDRESS, Outcome.REFUSED, Reason.FULL, "no room"), Code.REFUSED),
        (Trial(ADDRESS, Outcome.REFUSED, Reason.PROTOCOL, "too much"), Code.OTHER_PROTOCOL),
    ],
)
def test_the_only_address_of_a_node_fails_and_the_reason_is_the_fault(
    trial: Trial, code: Code
) -> None:
    (check,) = diagnose_pair(apart(trial))
    assert (check.code, check.result, check.about) == (code, Result.FAULT, trial.address)
    assert check.says
    assert check.to_do


@pytest.mark.parametrize("outcome", [each for each in Outcome if each is not Outcome.ANSWERED])
def test_every_outcome_has_words_that_name_the_node_or_what_to_do(outcome: Outcome) -> None:
    (check,) = diagnose_pair(apart(Trial(ADDRESS, outcome, says="its own words")))
    assert "{" not in check.says + check.to_do
    assert check.says


def every_trial() -> list[Trial]:
    refusals = [Trial(ADDRESS, Outcome.REFUSED, reason) for reason in (*Reason, "", "unheard of")]
    others = [Trial(ADDRESS, outcome) for outcome in Outcome]
    return [replace(each, is_near=near) for each in (*refusals, *others) for near in (True, False)]


def every_finding(trial: Trial) -> list[Check]:
    standings = (None, *NodeState)
    seen = [
        AddressSeen(trial, name, is_told=told, standing=standing, has_members=runs)
        for name, told, standing, runs in product(
            ("", "minipc"), (True, False), standings, (True, False)
        )
    ]
    return [
        *diagnose_pair(apart(trial)),
        *diagnose_pair(replace(LINKED, trials=(trial,), checkup=None, no_checkup="it is busy")),
        *diagnose_pair(replace(LINKED, trials=(trial,), twins=True, evicted="it was lost")),
        *diagnose_self(SelfSeen((ADDRESS,), (trial,), is_only_here=True, twins=True)),
        *diagnose_invite(replace(INVITE, trials=(trial,), is_expired=True, own_mesh_id="bb")),
        *diagnose_stranger(trial),
        *(check for each in seen for check in diagnose_address(each)),
    ]


def test_no_fault_is_without_words_and_a_hint() -> None:
    checks = [check for trial in every_trial() for check in every_finding(trial)]
    checks += [diagnose_stopped(), diagnose_evicted("aa", "lost", "2026"), *diagnose_outsider([])]
    for check in checks:
        assert check.says, check
        assert "{" not in check.says + check.to_do, check
        assert check.to_do or check.result is Result.OK, check


def test_what_sends_something_else_than_a_hello_has_the_port_of_another_program() -> None:
    words = "the peer sent more than a handshake may hold"
    (check,) = diagnose_pair(apart(Trial(ADDRESS, Outcome.REFUSED, Reason.PROTOCOL, words)))
    (plain,) = diagnose_pair(apart(Trial(ADDRESS, Outcome.OTHER_PROTOCOL)))
    assert (check.code, check.to_do) == (Code.OTHER_PROTOCOL, plain.to_do)


def test_a_member_that_takes_connections_and_says_nothing_hangs() -> None:
    mute = Trial(ADDRESS, Outcome.MUTE)
    frozen_with_link = replace(LINKED, trials=(mute,), checkup=None, no_checkup="no answer in time")
    for seen in (apart(mute), frozen_with_link):
        check = only(diagnose_pair(seen), Code.HANGS)
        assert check.result is Result.FAULT  # also while the link has not been given up yet
        assert "the process of minipc hangs or is suspended" in check.says
        assert "another program" not in check.says
    (told,) = diagnose_address(AddressSeen(mute, "minipc", is_told=True))
    assert (told.code, told.result) == (Code.HANGS, Result.FAULT)


def test_what_says_nothing_beside_a_member_that_answers_is_another_program() -> None:
    mute = Trial("172.17.0.1:8471", Outcome.MUTE)
    for seen in (replace(LINKED, trials=(mute,)), replace(apart(mute), trials=(mute, REACHED))):
        assert only(diagnose_pair(seen), Code.MUTE).result is Result.NOTE
    (unknown,) = diagnose_address(AddressSeen(mute))
    assert (unknown.code, unknown.result) == (Code.MUTE, Result.FAULT)


@pytest.mark.parametrize(
    ("standing", "words"),
    [
        (None, "does not know it as a member"),
        (NodeState.DEAD, "holds it for dead"),
        (NodeState.LEFT, "holds that it has left"),
    ],
)
def test_a_member_that_answers_and_is_none_here_is_a_fault(
    standing: NodeState | None, words: str
) -> None:
    answered = replace(REACHED, node="ab" * 16)
    name = "" if standing is None else "minipc"
    (check,) = diagnose_address(AddressSeen(answered, name, standing=standing))
    assert (check.code, check.result) == (Code.UNKNOWN_MEMBER, Result.FAULT)
    assert check.says.endswith(f"answers there and is of this mesh, but this node {words}")
    assert check.says.startswith("minipc (abab" if name else "node abab")
    assert "meshnode join" in check.to_do


def test_an_address_is_spoken_of_by_the_name_of_the_node_that_answered() -> None:
    answered = replace(REACHED, node="ab" * 16, ahead_s=600.0)
    checks = diagnose_address(AddressSeen(answered, "minipc", standing=NodeState.ALIVE))
    assert found(checks) == {Code.REACHABLE: Result.OK, Code.CLOCK: Result.FAULT}
    stopped = diagnose_address(AddressSeen(answered, has_members=False))
    silent = diagnose_address(AddressSeen(Trial(ADDRESS, Outcome.CLOSED)))
    for name, each in (("minipc", checks), ("node abab", stopped), ("that device", silent)):
        sentences = [check.says + check.to_do for check in each]
        assert any(name in sentence for sentence in sentences)
        assert not any(ADDRESS in sentence for sentence in sentences)


def test_a_private_address_elsewhere_is_told_from_a_firewall_in_the_same_network() -> None:
    far, near = (Trial(ADDRESS, Outcome.NO_ANSWER, is_near=each) for each in (False, True))
    assert "a network that this device is not in" in diagnose_pair(apart(far))[0].says
    assert "firewall" in diagnose_pair(apart(near))[0].says
    ipv6 = Trial("[fd00:1::20]:8471", Outcome.NO_ANSWER)
    assert diagnose_pair(apart(ipv6))[0].code is Code.NOT_ROUTABLE


def test_a_name_that_nobody_answers_at_is_no_private_address() -> None:
    for address in ("minipc.example:8471", "minipc:no-port"):
        assert diagnose_pair(apart(Trial(address, Outcome.NO_ANSWER)))[0].code is Code.NO_ANSWER


def test_an_address_that_fails_beside_one_that_works_is_only_worth_a_note() -> None:
    other = Trial("172.17.0.1:8471", Outcome.CLOSED)
    checks = diagnose_pair(replace(LINKED, trials=(REACHED, other)))
    assert only(checks, Code.PORT_CLOSED).result is Result.NOTE
    assert not has_fault(checks)


def test_what_holds_at_every_address_is_a_fault_although_a_link_stands() -> None:
    twin = Trial(ADDRESS, Outcome.REFUSED, Reason.TWIN, "copied")
    assert has_fault(diagnose_pair(replace(LINKED, trials=(twin,))))


@pytest.mark.parametrize(
    ("there", "here", "code"),
    [
        (0, 0, Code.UDP_BLOCKED),
        (0, 3, Code.UDP_BLOCKED_OUT),
        (3, 0, Code.UDP_BLOCKED_IN),
    ],
)
def test_datagrams_that_a_link_stands_without_are_missed_in_each_direction(
    there: int, here: int, code: Code
) -> None:
    checkup = replace(HEALTHY, datagrams=Datagrams(6, there, here))
    check = only(diagnose_pair(replace(LINKED, checkup=checkup)), code)
    assert check.result is Result.FAULT
    assert "UDP" in check.to_do


@pytest.mark.parametrize(
    ("ahead_s", "result", "words"),
    [
        (CLOCK_NOTE_S + 1, Result.NOTE, "6 s ahead of"),
        (-600.0, Result.FAULT, "10 minutes behind"),
        (MAX_CLOCK_SKEW_S + 10_000.0, Result.FAULT, "3 hours ahead of"),
        (-400 * 86_400.0, Result.FAULT, "400 days behind"),
    ],
)
def test_a_clock_is_a_fault_from_where_changes_are_refused(
    ahead_s: float, result: Result, words: str
) -> None:
    over_link = diagnose_pair(replace(LINKED, checkup=replace(HEALTHY, ahead_s=ahead_s)))
    by_trial = diagnose_pair(apart(replace(REACHED, ahead_s=ahead_s)))
    for checks in (over_link, by_trial):
        check = only(checks, Code.CLOCK)
        assert check.result is result
        assert words in check.says


def test_clocks_that_agree_are_not_worth_a_line() -> None:
    assert Code.CLOCK not in found(diagnose_pair(apart(REACHED)))


def test_a_node_of_another_version_gets_a_note() -> None:
    checks = diagnose_pair(replace(LINKED, version="1.1"))
    assert only(checks, Code.VERSION).result is Result.NOTE
    silent = replace(LINKED, checkup=replace(HEALTHY, reached=()))
    assert found(diagnose_pair(silent)) == found(diagnose_pair(LINKED))
    assert "1.0" in only(checks, Code.VERSION).says


def test_a_node_that_cannot_dial_back_is_no_fault_while_a_link_stands() -> None:
    reached = (Trial("192.168.1.10:8471", Outcome.NO_ANSWER, is_near=True),)
    check = only(
        diagnose_pair(replace(LINKED, checkup=replace(HEALTHY, reached=reached))), Code.NOT_REACHED
    )
    assert check.result is Result.NOTE
    assert "192.168.1.10:8471: no answer" in check.says


def test_a_node_that_does_not_answer_over_its_link_is_a_fault() -> None:
    checks = diagnose_pair(replace(LINKED, checkup=None, no_checkup="it said nothing"))
    assert only(checks, Code.NO_CHECKUP).result is Result.FAULT


def test_silence_on_the_local_network_keeps_only_those_apart_that_have_no_other_way() -> None:
    silent = replace(LINKED, mdns=Multicast.SILENT)
    assert only(diagnose_pair(silent), Code.MDNS_SILENT).result is Result.NOTE
    alone = replace(apart(Trial(ADDRESS, Outcome.NO_ANSWER)), mdns=Multicast.SILENT)
    assert only(diagnose_pair(alone), Code.MDNS_SILENT).result is Result.FAULT
    broken = replace(LINKED, mdns=Multicast.BROKEN)
    assert Code.MDNS_BROKEN not in found(diagnose_pair(broken))  # it is this node's own check


def test_an_evicted_node_and_one_that_runs_twice_are_faults_whatever_else_works() -> None:
    (evicted,) = diagnose_pair(replace(LINKED, evicted="it was lost"))
    assert (evicted.code, evicted.result) == (Code.REVOKED, Result.FAULT)
    assert evicted.says == "minipc is no member any more: it was lost"
    assert only(diagnose_pair(replace(LINKED, twins=True)), Code.TWIN).result is Result.FAULT


def test_a_node_without_any_address_cannot_be_tried() -> None:
    assert found(diagnose_pair(PairSeen("minipc", "1.0"))) == {Code.NO_ADDRESS: Result.FAULT}
    assert has_fault(diagnose_pair(PairSeen("minipc", "1.0")))


def test_a_node_by_itself_answers_itself_and_hears_itself() -> None:
    own = Trial(ADDRESS, Outcome.REFUSED, Reason.SELF, "itself")
    for heard, words in ((1, "1 other node"), (2, "2 other nodes")):
        seen = SelfSeen((ADDRESS,), (own,), mdns=Multicast.HEARD, heard=heard)
        checks = diagnose_self(seen)
        assert found(checks) == {Code.REACHABLE: Result.OK, Code.MDNS: Result.OK}
        assert words in only(checks, Code.MDNS).says


def test_what_is_wrong_with_a_node_by_itself() -> None:
    closed = Trial(ADDRESS, Outcome.CLOSED)
    checks = diagnose_self(SelfSeen((ADDRESS,), (closed,), mdns=Multicast.SILENT, twins=True))
    assert found(checks) == {
        Code.TWIN: Result.FAULT, Code.PORT_CLOSED: Result.NOTE, Code.MDNS_SILENT: Result.NOTE,
    }  # fmt: skip
    broken = SelfSeen(
        ("127.0.0.1:8471",), is_only_here=True, mdns=Multicast.BROKEN, mdns_error="no network"
    )
    assert found(diagnose_self(broken)) == {
        Code.ONLY_HERE: Result.NOTE, Code.MDNS_BROKEN: Result.NOTE,
    }  # fmt: skip
    assert diagnose_self(SelfSeen((ADDRESS,))) == []
    twin = Trial(ADDRESS, Outcome.REFUSED, Reason.TWIN, "copied")
    assert has_fault(diagnose_self(SelfSeen((ADDRESS,), (twin,), mdns=Multicast.OFF)))


def test_an_invite_that_works_says_until_when() -> None:
    checks = diagnose_invite(INVITE)
    assert found(checks) == {Code.REACHABLE: Result.OK, Code.INVITE: Result.OK}
    assert "2026-01-01" in only(checks, Code.INVITE).says


def test_what_is_wrong_with_an_invite() -> None:
    assert only(diagnose_invite(replace(INVITE, own_mesh_id="bb")), Code.WRONG_MESH).to_do
    assert Code.INVITE in found(diagnose_invite(replace(INVITE, own_mesh_id="aa")))
    assert has_fault(diagnose_invite(replace(INVITE, is_expired=True)))
    assert found(diagnose_invite(replace(INVITE, trials=()))) == {Code.NO_ADDRESS: Result.FAULT}
    used = Trial(ADDRESS, Outcome.REFUSED, "used_up", "by three others", ahead_s=4000.0)
    checks = diagnose_invite(replace(INVITE, trials=(used,)))
    assert found(checks) == {Code.USED_UP: Result.FAULT, Code.CLOCK: Result.FAULT}


def test_a_device_without_a_mesh_hears_which_there_are() -> None:
    checks = diagnose_outsider([("minipc", "aa"), ("laptop", "aa"), ("cloud", "bb")])
    assert [check.says for check in checks if check.code is Code.MDNS] == [
        "mesh aa is here, with laptop, minipc",
        "mesh bb is here, with cloud",
    ]
    assert found(diagnose_outsider([])) == {
        Code.NO_MESH: Result.FAULT, Code.MDNS_SILENT: Result.NOTE,
    }  # fmt: skip
    assert diagnose_stopped().result is Result.FAULT


def test_a_device_that_was_evicted_is_told_from_which_mesh_and_why() -> None:
    check = diagnose_evicted("aa", "two said that it was lost", "2026-01-01T00:00:00Z")
    assert (check.code, check.result) == (Code.REVOKED, Result.FAULT)
    assert "mesh aa: two said that it was lost" in check.says


def test_a_stranger_at_an_address_is_a_node_if_it_refuses_another_mesh() -> None:
    node = Trial(ADDRESS, Outcome.REFUSED, Reason.WRONG_MESH, "another mesh")
    assert found(diagnose_stranger(node))[Code.REACHABLE] is Result.OK
    assert has_fault(diagnose_stranger(Trial(ADDRESS, Outcome.CLOSED)))


def test_the_page_explains_every_finding_and_no_other() -> None:
    page = (Path(__file__).parents[3] / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    table = page.partition("| finding | what it means |")[2].partition("\n\n")[0]
    explained = [
        code for line in table.splitlines() for code in re.findall(r"`(\w+)`", line.split(" | ")[0])
    ]
    assert sorted(explained) == sorted(Code)
