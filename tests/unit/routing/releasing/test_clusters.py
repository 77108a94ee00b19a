"""Where disagreements are found more often than elsewhere."""

from __future__ import annotations

import random

import msgspec

from meshnode.limits import MAX_CLUSTER_VALUES, MAX_CLUSTERS
from meshnode.routing.releasing.clusters import OTHERS, clusters

Seen = tuple[dict[str, str], bool]


def comparisons(number: int, seed: int, where: str, there: float, elsewhere: float) -> list[Seen]:
    rng = random.Random(seed)
    found: list[Seen] = []
    for _ in range(number):
        device = rng.choice(["cpu", "gpu", "tpu"])
        rate = there if device == where else elsewhere
        found.append(({"device": device, "rows": str(rng.choice([1, 2, 4]))}, rng.random() > rate))
    return found


def test_a_class_of_devices_on_which_answers_differ_is_found() -> None:
    (found,) = clusters(comparisons(1000, 1, "gpu", 0.1, 0.005))
    assert (found.attribute, found.value) == ("device", "gpu")
    assert found.share > 0.05 > found.elsewhere
    assert found.lift > 5
    assert found.chance < 1e-4
    assert str(found).startswith("device gpu: ")
    assert msgspec.to_builtins(found)["disagreed"] == found.disagreed


def test_where_they_differ_nowhere_else_the_lift_is_finite() -> None:
    (found,) = clusters(comparisons(1000, 2, "tpu", 0.05, 0.0))
    assert (found.value, found.elsewhere) == ("tpu", 0.0)
    assert 10 < found.lift < 1000


def test_disagreements_that_are_everywhere_are_in_no_cluster() -> None:
    false = [clusters(comparisons(500, seed, "", 0.0, 0.1)) for seed in range(100)]
    assert sum(map(bool, false)) <= 3
    assert clusters([]) == ()
    assert clusters([({}, False)] * 50) == ()
    assert clusters([({"device": "cpu"}, False)] * 50) == ()  # all are on the same


def test_many_values_of_an_attribute_count_together() -> None:
    seen: list[Seen] = [({"answer": str(number)}, True) for number in range(2 * MAX_CLUSTER_VALUES)]
    seen += [({"answer": "last"}, False)] * 30
    (found,) = clusters(seen)
    assert (found.value, found.compared) == (OTHERS, MAX_CLUSTER_VALUES + 30)


def test_the_clearest_clusters_are_shown() -> None:
    seen: list[Seen] = []
    for number in range(30):
        seen += [({f"a{number}": "x"}, False)] * (10 + number)
        seen += [({f"a{number}": "y"}, True)] * 200
    found = clusters(seen)
    assert len(found) == MAX_CLUSTERS
    assert [each.chance for each in found] == sorted(each.chance for each in found)
    assert found[0].attribute == "a29"
