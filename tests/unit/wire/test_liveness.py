from __future__ import annotations

import pytest

from meshnode.wire.config import LinkConfig
from meshnode.wire.liveness import PATIENCE_S, PINGS_UNTIL_IDLE, Liveness, Verdict

CONFIG = LinkConfig()


def answered_first_ping(rtt_s: float = 0.01) -> Liveness:
    """A watch whose first ping, at 0.0, was answered."""
    liveness = Liveness(CONFIG, 0.0)
    assert liveness.tick(0.0, owed=False) is Verdict.PING
    liveness.heard(rtt_s)
    assert liveness.answered(liveness.token, rtt_s) == pytest.approx(rtt_s)
    return liveness


def test_a_new_link_pings_at_once_and_then_every_two_seconds() -> None:
    liveness = Liveness(CONFIG, 5.0)
    assert liveness.next_tick(5.0, owed=False) == 5.0
    assert liveness.tick(5.0, owed=False) is Verdict.PING
    assert liveness.tick(5.0, owed=False) is Verdict.FINE
    liveness.heard(5.1)
    liveness.answered(1, 5.1)
    assert liveness.next_tick(5.1, owed=False) == 7.0
    assert liveness.tick(6.9, owed=False) is Verdict.FINE
    assert liveness.tick(7.0, owed=False) is Verdict.PING
    assert liveness.token == 2


def test_a_ping_that_is_asked_for_goes_out_at_once_and_only_its_own_answer_counts() -> None:
    """What a peer said before it was asked is no sign of life."""
    liveness = Liveness(CONFIG, 0.0)
    assert liveness.tick(0.0, owed=False) is Verdict.PING
    early = liveness.token
    assert liveness.ask(0.05) == early + 1
    assert liveness.answered(early, 0.06) is None
    assert liveness.ping_is_out
    assert liveness.answered(early + 1, 0.07) == pytest.approx(0.02)
    assert not liveness.ping_is_out


def idle(*, dialler: bool = True) -> tuple[Liveness, float]:
    """A watch of a link that has just become idle, and when its last ping was answered."""
    liveness = Liveness(CONFIG, 0.0, dialler=dialler)
    now = 0.0
    for _ in range(PINGS_UNTIL_IDLE):
        due = liveness.next_tick(now, owed=False)
        assert due is not None
        now = due
        assert liveness.tick(now, owed=False) is Verdict.PING
        liveness.heard(now)
        assert liveness.answered(liveness.token, now) == 0.0
    assert now == (PINGS_UNTIL_IDLE - 1) * CONFIG.ping_interval_s
    return liveness, now


def test_a_link_on_which_nothing_is_asked_is_pinged_only_after_silence() -> None:
    liveness, now = idle()
    assert liveness.next_tick(now, owed=False) == now + CONFIG.idle_ping_after_s
    liveness.heard(now + 5.0)
    assert liveness.next_tick(now, owed=False) == now + 5.0 + CONFIG.idle_ping_after_s


def test_the_side_that_accepted_an_idle_link_leaves_the_ping_to_the_other() -> None:
    liveness, now = idle(dialler=False)
    due = now + CONFIG.idle_ping_after_s + PATIENCE_S
    assert liveness.next_tick(now, owed=False) == due
    assert due + CONFIG.idle_ping_after_s / 2 < now + CONFIG.dead_after_s, "time for an answer"


def test_an_idle_link_measures_its_round_trip_time_at_last_whatever_it_carries() -> None:
    liveness, now = idle()
    liveness.heard(now + CONFIG.rtt_age_s - 1.0)
    assert liveness.tick(now + CONFIG.rtt_age_s - 0.1, owed=False) is Verdict.FINE
    assert liveness.tick(now + CONFIG.rtt_age_s, owed=False) is Verdict.PING


def test_a_question_wakes_an_idle_link() -> None:
    liveness, now = idle()
    liveness.heard(now + 4.0)
    assert liveness.next_tick(now + 4.0, owed=True) == now + 4.0
    assert liveness.tick(now + 4.0, owed=True) is Verdict.PING
    liveness.heard(now + 4.0)
    liveness.answered(liveness.token, now + 4.0)
    assert liveness.next_tick(now + 4.0, owed=False) == now + 4.0 + CONFIG.ping_interval_s


def test_an_idle_link_that_falls_silent_is_dead_as_soon_as_any_other() -> None:
    liveness, now = idle()
    assert liveness.tick(now + CONFIG.idle_ping_after_s, owed=False) is Verdict.PING
    assert liveness.next_tick(now + CONFIG.idle_ping_after_s, owed=False) == now + 15.0
    assert liveness.tick(now + 15.0, owed=False) is Verdict.DEAD


def test_the_round_trip_time_is_smoothed() -> None:
    liveness = answered_first_ping(0.1)
    assert liveness.rtt_s == pytest.approx(0.1)
    assert liveness.tick(2.0, owed=False) is Verdict.PING
    assert liveness.answered(2, 2.5) == pytest.approx(0.5)
    assert liveness.rtt_s == pytest.approx(0.1 + 0.4 / 8)


@pytest.mark.parametrize("token", [0, 2, 2**64 - 1])
def test_an_answer_to_no_ping_of_ours_is_ignored(token: int) -> None:
    liveness = Liveness(CONFIG, 0.0)
    liveness.tick(0.0, owed=False)
    assert liveness.answered(token, 0.1) is None
    assert liveness.answered(1, 0.2) == pytest.approx(0.2)
    assert liveness.answered(1, 0.3) is None


def test_only_one_ping_is_out_at_a_time() -> None:
    liveness = Liveness(CONFIG, 0.0)
    liveness.tick(0.0, owed=False)
    assert liveness.tick(4.0, owed=False) is Verdict.FINE
    assert liveness.next_tick(4.0, owed=False) == CONFIG.dead_after_s


def test_silence_with_an_answer_owed_is_probed_and_then_a_stall() -> None:
    liveness = answered_first_ping()
    liveness.heard(1.0)
    assert liveness.next_tick(1.0, owed=True) == 1.25
    assert liveness.tick(1.2, owed=True) is Verdict.FINE
    assert liveness.tick(1.25, owed=True) is Verdict.PING
    assert repr(liveness) == "<Liveness probing rtt=10.0 ms>"
    assert liveness.next_tick(1.25, owed=True) == 1.95
    assert liveness.tick(1.94, owed=True) is Verdict.FINE
    assert liveness.tick(1.95, owed=True) is Verdict.STALLED
    assert repr(liveness) == "<Liveness stalled rtt=10.0 ms>"
    assert liveness.tick(3.0, owed=True) is Verdict.FINE, "a stall is told once"
    assert liveness.heard(4.0)
    assert not liveness.stalled
    assert not liveness.heard(4.1), "a recovery is told once"
    assert repr(liveness) == "<Liveness quiet rtt=10.0 ms>"


def test_silence_without_an_answer_owed_is_no_stall() -> None:
    liveness = answered_first_ping()
    assert [liveness.tick(t / 4, owed=False) for t in range(1, 8)] == [Verdict.FINE] * 7


def test_any_byte_of_an_answer_ends_the_probing() -> None:
    liveness = answered_first_ping()
    assert liveness.tick(0.5, owed=True) is Verdict.PING
    liveness.heard(0.9)
    assert liveness.tick(1.1, owed=True) is Verdict.FINE
    assert liveness.next_tick(1.1, owed=True) == pytest.approx(1.15)


def test_a_peer_that_gossips_but_answers_nothing_is_stalled_and_not_dead() -> None:
    """Its network is broken in one direction: we hear it, and it hears nothing."""
    liveness = answered_first_ping()
    assert liveness.tick(0.5, owed=True) is Verdict.PING
    assert not liveness.heard(1.0, unasked=True)
    assert liveness.next_tick(1.0, owed=True) == pytest.approx(1.2)
    assert liveness.tick(1.2, owed=True) is Verdict.STALLED
    assert not liveness.heard(14.0, unasked=True), "it goes on gossiping"
    assert liveness.stalled
    assert liveness.tick(15.1, owed=True) is Verdict.FINE
    assert liveness.heard(16.0), "at last it answers"
    assert not liveness.stalled


def test_a_ping_that_is_out_already_serves_as_the_probe() -> None:
    liveness = Liveness(CONFIG, 0.0)
    assert liveness.tick(0.0, owed=False) is Verdict.PING
    assert liveness.tick(0.3, owed=True) is Verdict.FINE
    assert liveness.next_tick(0.3, owed=True) == pytest.approx(1.0)
    assert liveness.tick(1.0, owed=True) is Verdict.STALLED


def test_a_far_peer_gets_two_round_trips_before_it_counts_as_stalled() -> None:
    liveness = answered_first_ping(rtt_s=0.9)
    assert liveness.tick(1.2, owed=True) is Verdict.PING
    assert liveness.tick(2.9, owed=True) is Verdict.FINE
    assert liveness.tick(3.0, owed=True) is Verdict.STALLED


def test_a_stall_is_not_a_sample_of_the_round_trip_time() -> None:
    liveness = answered_first_ping()
    liveness.tick(0.5, owed=True)
    assert liveness.tick(1.3, owed=True) is Verdict.STALLED
    liveness.heard(9.0)
    assert liveness.answered(liveness.token, 9.0) is None
    assert liveness.rtt_s == pytest.approx(0.01)


def test_a_silent_connection_is_dead_after_fifteen_seconds_and_told_once() -> None:
    liveness = answered_first_ping(0.01)
    assert liveness.tick(2.0, owed=False) is Verdict.PING
    assert liveness.tick(15.0, owed=False) is Verdict.FINE
    assert liveness.tick(15.01, owed=False) is Verdict.DEAD
    assert liveness.tick(16.0, owed=False) is Verdict.FINE
    assert liveness.next_tick(16.0, owed=False) is None
    assert repr(liveness) == "<Liveness dead rtt=10.0 ms>"


def test_a_process_that_slept_itself_does_not_call_its_peer_stalled() -> None:
    """The tick that should have found a stall at 1.2 s comes at 9 s: we were suspended."""
    liveness = answered_first_ping()
    liveness.tick(0.5, owed=True)
    assert liveness.next_tick(0.5, owed=True) == 1.2
    assert liveness.tick(9.0, owed=True) is Verdict.FINE
    assert liveness.next_tick(9.0, owed=True) == 9.7, "the peer gets the whole time anew"
    liveness.heard(9.2)
    assert liveness.answered(liveness.token, 9.2) is None, "the sleep is no round-trip time"


def test_a_process_that_slept_itself_still_finds_a_peer_that_stays_silent() -> None:
    liveness = answered_first_ping()
    liveness.tick(0.5, owed=True)
    liveness.next_tick(0.5, owed=True)
    liveness.tick(9.0, owed=True)
    liveness.next_tick(9.0, owed=True)
    assert liveness.tick(9.7, owed=True) is Verdict.STALLED


def test_a_process_that_slept_itself_does_not_give_up_the_connection() -> None:
    liveness = answered_first_ping()
    liveness.tick(2.0, owed=False)
    assert liveness.next_tick(2.0, owed=False) == pytest.approx(15.01)
    assert liveness.tick(3600.0, owed=False) is Verdict.FINE
    assert liveness.next_tick(3600.0, owed=False) == 3615.0
    assert liveness.tick(3615.0, owed=False) is Verdict.DEAD


def test_what_was_overdue_when_it_was_asked_is_no_lateness() -> None:
    """A request is sent on a link that was silent for long enough already."""
    liveness = answered_first_ping()
    assert liveness.next_tick(1.9, owed=True) == 1.9
    assert liveness.tick(1.9, owed=True) is Verdict.PING


def test_a_tick_that_is_only_a_little_late_counts() -> None:
    liveness = answered_first_ping()
    liveness.tick(0.5, owed=True)
    liveness.next_tick(0.5, owed=True)
    assert liveness.tick(1.65, owed=True) is Verdict.STALLED


def test_the_repr_of_a_new_one_knows_no_round_trip_time() -> None:
    assert repr(Liveness(CONFIG, 0.0)) == "<Liveness quiet rtt=unknown>"
