"""How many instances, with how many threads: the table of the module, row by row."""

from __future__ import annotations

import pytest

from meshnode.errors import ModelError
from meshnode.limits import MAX_INSTANCES
from meshnode.models.execution import Execution, InstanceGroup
from meshnode.models.serving.thread_plan import Asked, InstancePlan, Kind, Pace, plan

SHARED, APART, PROCESS = Kind.SHARED, Kind.APART, Kind.PROCESS
INLINE, SHORT, LONG = Pace.INLINE, Pace.SHORT, Pace.LONG


def asked(count: int = 0, threads: int = 0, device: str = "auto") -> Asked:
    return Asked((InstanceGroup(count, device),) if count or device != "auto" else (), threads)


def totals(cores: int, kind: Kind, pace: Pace, wish: Asked) -> tuple[int, int, int]:
    """Return opened instances, runs at once, and threads of each run."""
    made = plan(cores, 0, kind, pace, wish).instances
    assert len({each.threads for each in made}) == 1
    return len(made), sum(each.slots for each in made), made[0].threads


@pytest.mark.parametrize(
    ("kind", "pace", "wish", "expected"),
    [
        (SHARED, INLINE, asked(), (1, 1, 1)),
        (SHARED, SHORT, asked(), (1, 8, 1)),
        (SHARED, LONG, asked(), (1, 1, 8)),
        (APART, SHORT, asked(), (8, 8, 1)),
        (APART, LONG, asked(), (1, 1, 8)),
        (PROCESS, SHORT, asked(), (1, 1, 8)),
        (SHARED, SHORT, asked(threads=3), (1, 2, 3)),
        (SHARED, SHORT, asked(3), (1, 3, 1)),
        (SHARED, LONG, asked(3), (1, 3, 2)),
        (APART, LONG, asked(2), (2, 2, 4)),
        (PROCESS, SHORT, asked(2), (2, 2, 4)),
        (SHARED, LONG, asked(4, threads=2), (1, 4, 2)),
        (SHARED, LONG, Asked(slots=20), (1, 20, 1)),
    ],
)
def test_instances_and_threads_follow_the_table(
    kind: Kind, pace: Pace, wish: Asked, expected: tuple[int, int, int]
) -> None:
    assert totals(8, kind, pace, wish) == expected
    assert plan(8, 0, kind, pace, wish).warning == ""


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("pace", list(Pace))
@pytest.mark.parametrize("cores", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("count", range(5))
def test_threads_never_exceed_the_cores_unless_asked(
    kind: Kind, pace: Pace, cores: int, count: int
) -> None:
    made = plan(cores, 0, kind, pace, asked(count))
    in_use = sum(each.slots * each.threads for each in made.instances)
    assert in_use <= cores or (count > cores and made.warning)


def test_more_threads_than_cores_are_given_where_asked_for_with_a_warning() -> None:
    made = plan(2, 0, SHARED, SHORT, asked(4, threads=2))
    assert made.instances == (InstancePlan("auto", 2, 4),)
    assert made.warning == (
        "its configuration asks for 8 threads at once on 2 cores, so its instances slow each other down"
    )


def test_instances_on_accelerators_are_placed_on_each_and_take_one_thread() -> None:
    group = InstanceGroup(2, "gpu")
    made = plan(2, 2, APART, LONG, Asked((group,)))
    assert made.instances == (
        InstancePlan("gpu:0", 1), InstancePlan("gpu:0", 1),
        InstancePlan("gpu:1", 1), InstancePlan("gpu:1", 1),
    )  # fmt: skip
    assert made.warning == ""
    chosen = plan(2, 2, SHARED, LONG, Asked((InstanceGroup(3, "gpu", (1,)),)))
    assert chosen.instances == (InstancePlan("gpu:1", 1, 3),)
    # The runtime says what is wrong where there is none.
    assert plan(2, 0, SHARED, LONG, Asked((group,))).instances[0].device == "gpu"


def test_passive_instances_are_opened_and_take_no_threads() -> None:
    groups = (InstanceGroup(2, "cpu"), InstanceGroup(1, "cpu", (), passive=True))
    made = plan(2, 0, APART, SHORT, Asked(groups))
    assert [each.passive for each in made.instances] == [False, False, True]
    assert made.warning == ""


def test_more_instances_than_a_node_opens_are_refused() -> None:
    with pytest.raises(ModelError, match="lower `count` in instance_group"):
        plan(8, 0, PROCESS, SHORT, asked(MAX_INSTANCES + 1))


def test_settings_name_threads_and_instances() -> None:
    execution = Execution(parameters=(("intra_op_thread_count", "3"),), replicas=2)
    assert Asked.of(execution) == Asked((InstanceGroup(2),), 3)
    grouped = Execution(instance_groups=(InstanceGroup(5),), replicas=2)
    assert Asked.of(grouped, slots=4) == Asked((InstanceGroup(5),), 0, 4)
    with pytest.raises(ModelError, match="intra_op_thread_count is 'many'"):
        Asked.of(Execution(parameters=(("intra_op_thread_count", "many"),)))
