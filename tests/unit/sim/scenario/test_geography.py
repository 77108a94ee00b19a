from __future__ import annotations

import pytest

from meshnode.sim.scenario.geography import (
    DATA_CENTRES,
    PLACES,
    coordinates,
    distance_km,
    matrix,
    rtt_ms,
)
from meshnode.sim.scenario.model import Nodes, Path, Place, Scenario


def test_no_two_data_centres_share_a_name_and_all_are_on_the_globe() -> None:
    names = [name for centre in DATA_CENTRES for name in (centre.city, *centre.names)]
    assert len(names) == len({*names}) == len(PLACES)
    assert len(DATA_CENTRES) >= 40
    assert all(name == name.lower() for name in names)
    assert all(-90 <= lat <= 90 and -180 <= long <= 180 for lat, long in PLACES.values())


@pytest.mark.parametrize(
    ("one", "other", "km"),
    [
        ("london", "new-york", 5570),
        ("frankfurt", "singapore", 10260),
        ("sydney", "santiago", 11340),
    ],
)
def test_distances_are_those_of_an_atlas(one: str, other: str, km: float) -> None:
    assert distance_km(PLACES[one], PLACES[other]) == pytest.approx(km, rel=0.01)


def test_the_distance_to_the_other_side_of_the_globe_is_half_its_girth() -> None:
    assert distance_km((0.0, 0.0), (0.0, 180.0)) == pytest.approx(20015, abs=1)
    assert distance_km((90.0, 0.0), (-90.0, 77.0)) == pytest.approx(20015, abs=1)
    assert distance_km((12.0, 34.0), (12.0, 34.0)) == 0


@pytest.mark.parametrize(
    ("one", "other", "usual_ms"),
    [
        ("us-east-1", "us-west-2", 59.0),
        ("us-east-1", "eu-west-1", 67.0),
        ("us-east-1", "ap-northeast-1", 146.0),
        ("eu-west-1", "eu-central-1", 25.0),
        ("us-west-2", "ap-northeast-1", 97.0),
        ("ap-northeast-1", "ap-southeast-1", 69.0),
    ],
)
def test_round_trips_are_near_those_that_clouds_have_between_them(
    one: str, other: str, usual_ms: float
) -> None:
    """Round numbers as seen from virtual machines; short paths make the greatest detours."""
    assert rtt_ms(PLACES[one], PLACES[other]) == pytest.approx(usual_ms, rel=0.3)


def test_a_region_is_where_it_says_else_where_its_name_says() -> None:
    assert coordinates("eu-west", Place()) == PLACES["dublin"]
    assert coordinates("EU-West-1", Place()) == PLACES["dublin"]
    assert coordinates("eu-west", Place(place="LHR")) == PLACES["london"]
    assert coordinates("eu-west", Place(at=(1.0, 2.0))) == (1.0, 2.0)
    assert coordinates("moon", Place()) is None


def test_the_matrix_follows_the_rule_where_no_path_says_otherwise() -> None:
    scenario = Scenario(
        name="three",
        regions={"lhr": Place(), "nrt": Place(), "ship": Place(at=(0.0, 0.0))},
        nodes=(Nodes(region="lhr"),),
        paths=(
            Path(between=("ship", "lhr"), rtt_ms=600.0, loss=0.02, bandwidth_mbps=10.0),
            Path(between=("nrt", "nrt"), jitter=0.5),
        ),
    )
    paths = matrix(scenario)
    assert [*paths] == [
        ("lhr", "lhr"), ("lhr", "nrt"), ("lhr", "ship"), ("nrt", "nrt"), ("nrt", "ship"),
        ("ship", "ship"),
    ]  # fmt: skip
    assert paths["lhr", "nrt"].rtt_ms == rtt_ms(PLACES["london"], PLACES["tokyo"])
    assert paths["lhr", "ship"] == Path(
        between=("lhr", "ship"), rtt_ms=600.0, jitter=0.1, loss=0.02, bandwidth_mbps=10.0
    )
    assert paths["nrt", "nrt"] == Path(between=("nrt", "nrt"), rtt_ms=0.5, jitter=0.5, loss=0.0)
