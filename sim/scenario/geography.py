"""Where data centres are, and how long light and routers take between them.

A region of a scenario needs a place on the globe. It may give coordinates, or be called like a data
centre of this table: a city, or its name at a cloud (`eu-west-1`, `europe-west2`, `lhr`), or one of the
plain labels that people give their regions (`eu-west`, `us-east`).

The round trip between two regions is then `4 ms + great-circle distance in km / 75`. The rule is that
of the simulator in superfly/corrosion, whose authors found it within about 15 % of what they measured:
light in glass goes 100 km there and back in 1 ms, cables make a third of a detour, and the last miles
on both sides take 4 ms. A scenario's `paths` say where it is otherwise.

Coordinates are those of the cities, to a tenth of a degree (11 km, 0.15 ms): clouds don't tell more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from meshnode.sim.scenario.model import Path

if TYPE_CHECKING:
    from meshnode.sim.scenario.model import Place, Scenario

EARTH_RADIUS_KM: Final = 6371.0
"""The mean radius; the globe is a sphere here, which is wrong by at most 0.6 %."""

LAST_MILES_MS: Final = 4.0
"""What both ends of a path add, however near they are."""

KM_PER_MS: Final = 75.0
"""How far apart two places are for each millisecond of round trip."""

Coordinates = tuple[float, float]
"""Latitude and longitude in degrees, north and east positive."""


@dataclass(frozen=True, slots=True)
class DataCentre:
    """A place that a scenario may name.

    Attributes:
        city: In lower case, with hyphens.
        at: Where.
        names: What else it is called: at AWS, at Google Cloud, at fly.io, and as a plain label.
    """

    city: str
    at: Coordinates
    names: tuple[str, ...] = ()


def _centre(city: str, latitude: float, longitude: float, names: str = "") -> DataCentre:
    return DataCentre(city, (latitude, longitude), tuple(names.split()))


DATA_CENTRES: Final[tuple[DataCentre, ...]] = (
    # Europe
    _centre("dublin", 53.3, -6.3, "eu-west eu-west-1 dub"),
    _centre("london", 51.5, -0.1, "eu-west-2 europe-west2 lhr"),
    _centre("paris", 48.9, 2.4, "eu-west-3 europe-west9 cdg"),
    _centre("madrid", 40.4, -3.7, "eu-south-2 europe-southwest1 mad"),
    _centre("milan", 45.5, 9.2, "eu-south eu-south-1 europe-west8"),
    _centre("zurich", 47.4, 8.5, "eu-central-2 europe-west6"),
    _centre("frankfurt", 50.1, 8.7, "eu-central eu-central-1 europe-west3 fra"),
    _centre("amsterdam", 52.4, 4.9, "europe-west4 ams"),
    _centre("brussels", 50.8, 4.4, "europe-west1"),
    _centre("warsaw", 52.2, 21.0, "europe-central2 waw"),
    _centre("stockholm", 59.3, 18.1, "eu-north eu-north-1 arn"),
    _centre("helsinki", 60.2, 24.9, "europe-north1"),
    _centre("bucharest", 44.4, 26.1, "eu-east otp"),
    # North America
    _centre("virginia", 39.0, -77.5, "us-east us-east-1 us-east4 iad ashburn"),
    _centre("new-york", 40.7, -74.0, "ewr secaucus"),
    _centre("ohio", 40.0, -83.0, "us-east-2 us-east5 columbus"),
    _centre("south-carolina", 33.2, -80.0, "us-east1"),
    _centre("miami", 25.8, -80.2, "mia"),
    _centre("chicago", 41.9, -87.6, "ord"),
    _centre("iowa", 41.2, -95.9, "us-central us-central1"),
    _centre("dallas", 32.8, -96.8, "us-south us-south1 dfw"),
    _centre("denver", 39.7, -105.0, "den"),
    _centre("los-angeles", 34.1, -118.2, "us-west2 lax"),
    _centre("san-jose", 37.3, -121.9, "us-west-1 sjc california"),
    _centre("oregon", 45.6, -121.2, "us-west us-west-2 us-west1"),
    _centre("seattle", 47.6, -122.3, "sea"),
    _centre("montreal", 45.5, -73.6, "ca-central ca-central-1 northamerica-northeast1 yul"),
    _centre("toronto", 43.7, -79.4, "northamerica-northeast2 yyz"),
    _centre("queretaro", 20.6, -100.4, "mx-central-1 northamerica-south1 qro"),
    # South America
    _centre("sao-paulo", -23.5, -46.6, "sa-east sa-east-1 southamerica-east1 gru"),
    _centre("santiago", -33.4, -70.7, "sa-west southamerica-west1 scl"),
    _centre("bogota", 4.7, -74.1, "bog"),
    # Asia and the Middle East
    _centre("tokyo", 35.7, 139.7, "ap-northeast ap-northeast-1 asia-northeast1 nrt"),
    _centre("osaka", 34.7, 135.5, "ap-northeast-3 asia-northeast2"),
    _centre("seoul", 37.6, 127.0, "ap-northeast-2 asia-northeast3 icn"),
    _centre("hong-kong", 22.3, 114.2, "ap-east ap-east-1 asia-east2 hkg"),
    _centre("taipei", 25.0, 121.5, "asia-east1"),
    _centre("singapore", 1.4, 103.8, "ap-southeast ap-southeast-1 asia-southeast1 sin"),
    _centre("jakarta", -6.2, 106.8, "ap-southeast-3 asia-southeast2 cgk"),
    _centre("mumbai", 19.1, 72.9, "ap-south ap-south-1 asia-south1 bom"),
    _centre("delhi", 28.6, 77.2, "asia-south2 del"),
    _centre("tel-aviv", 32.1, 34.8, "il-central-1 me-west1"),
    _centre("bahrain", 26.1, 50.6, "me-south me-south-1"),
    _centre("dubai", 25.2, 55.3, "me-central me-central-1"),
    # Australia and Africa
    _centre("sydney", -33.9, 151.2, "ap-southeast-2 australia-southeast1 au-east syd"),
    _centre("melbourne", -37.8, 145.0, "ap-southeast-4 australia-southeast2"),
    _centre("cape-town", -33.9, 18.4, "af-south af-south-1"),
    _centre("johannesburg", -26.2, 28.0, "africa-south1 jnb"),
)
"""The built-in places."""

PLACES: Final[dict[str, Coordinates]] = {
    name: centre.at for centre in DATA_CENTRES for name in (centre.city, *centre.names)
}
"""Where each of them is, by each of its names."""

CITIES: Final[tuple[str, ...]] = tuple(centre.city for centre in DATA_CENTRES)
"""The first name of each."""


def distance_km(one: Coordinates, other: Coordinates) -> float:
    """Return the length of the great circle between two places (haversine formula)."""
    latitude_one, longitude_one = map(math.radians, one)
    latitude_other, longitude_other = map(math.radians, other)
    half_chord_squared = (
        math.sin((latitude_other - latitude_one) / 2) ** 2
        + math.cos(latitude_one)
        * math.cos(latitude_other)
        * math.sin((longitude_other - longitude_one) / 2) ** 2
    )
    return 2 * EARTH_RADIUS_KM * math.asin(math.sqrt(min(1.0, half_chord_squared)))


def rtt_ms(one: Coordinates, other: Coordinates) -> float:
    """Return the mean round trip between two data centres in milliseconds."""
    return LAST_MILES_MS + distance_km(one, other) / KM_PER_MS


def coordinates(region: str, place: Place) -> Coordinates | None:
    """Return where a region of a scenario is.

    Args:
        region: Its name, which counts if `place` says nothing.
        place: What the scenario says of it.

    Returns:
        Latitude and longitude, or None if it is at no known place.
    """
    return place.at or PLACES.get((place.place or region).lower())


def matrix(scenario: Scenario) -> dict[tuple[str, str], Path]:
    """Return the path between any two regions of a scenario, and within each.

    Args:
        scenario: One without mistakes: each two regions have coordinates or a path with `rtt_ms`.

    Returns:
        By pair of names, the region first that the scenario names first. All fields are filled, but
        `bandwidth_mbps` is None where there is no limit.
    """
    given = {frozenset(path.between): path for path in scenario.paths}
    names = [*scenario.regions]
    pairs = [(one, other) for at, one in enumerate(names) for other in names[at:]]
    return {pair: _path(scenario, pair, given.get(frozenset(pair))) for pair in pairs}


def _path(scenario: Scenario, pair: tuple[str, str], given: Path | None) -> Path:
    network = scenario.network
    said = given if given is not None else Path(between=pair)
    return Path(
        between=pair,
        rtt_ms=said.rtt_ms if said.rtt_ms is not None else _rtt_ms(scenario, pair),
        jitter=said.jitter if said.jitter is not None else network.jitter,
        loss=said.loss if said.loss is not None else network.loss,
        bandwidth_mbps=said.bandwidth_mbps,
    )


def _rtt_ms(scenario: Scenario, pair: tuple[str, str]) -> float:
    one, other = pair
    if one == other:
        return scenario.network.near_rtt_ms
    at_one = coordinates(one, scenario.regions[one])
    at_other = coordinates(other, scenario.regions[other])
    assert at_one is not None, f"{one} is nowhere"
    assert at_other is not None, f"{other} is nowhere"
    return rtt_ms(at_one, at_other)
