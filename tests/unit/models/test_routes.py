"""Which model answers an HTTP path."""

from __future__ import annotations

import pytest

from meshnode.errors import ModelError
from meshnode.models.execution import Route
from meshnode.models.routes import RouteTable, check_routes, hidden_routes


def test_a_path_is_found_by_method() -> None:
    table = RouteTable({"qa": [Route("POST", "/qa"), Route("GET", "/qa")]})
    owner, methods = table.find("POST", "/qa")
    assert owner == ("qa", "/qa")
    assert methods == {"GET", "POST"}
    assert table.find("DELETE", "/qa") == (None, frozenset({"GET", "POST"}))
    assert table.find("POST", "/other") == (None, frozenset())


def test_head_is_answered_by_whoever_answers_get() -> None:
    assert RouteTable({"qa": [Route("GET", "/qa")]}).find("HEAD", "/qa")[0] == ("qa", "/qa")


@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [
        ("/items/{item_id}", "/items/7", True),
        ("/items/{item_id}", "/items/7/8", False),
        ("/items/{item_id}", "/items/", False),
        ("/files/{name:path}", "/files/a/b.txt", True),
        ("/n/{number:int}", "/n/12", True),
        ("/n/{number:int}", "/n/twelve", False),
        ("/n/{x:float}", "/n/1.5", True),
        ("/a.b/{x}", "/aXb/1", False),
    ],
)
def test_parameters_take_what_fastapi_lets_them_take(pattern: str, path: str, fits: bool) -> None:
    owner, _ = RouteTable({"m": [Route("GET", pattern)]}).find("GET", path)
    assert (owner is not None) is fits


def test_a_plain_path_wins_over_a_pattern_and_one_parameter_over_two() -> None:
    table = RouteTable(
        {
            "a": [Route("GET", "/x/{one}/{two}"), Route("GET", "/x/{rest:path}")],
            "b": [Route("GET", "/x/fixed")],
        }
    )
    assert table.find("GET", "/x/fixed")[0] == ("b", "/x/fixed")
    assert table.find("GET", "/x/1/2")[0] == ("a", "/x/{rest:path}")


def test_every_gateway_gives_a_disputed_path_to_the_same_model() -> None:
    routes = {"b": [Route("POST", "/same")], "a": [Route("POST", "/same")]}
    assert RouteTable(routes).find("POST", "/same")[0] == ("a", "/same")


def test_two_models_with_one_route_are_refused_with_both_names() -> None:
    others = {"first": [Route("POST", "/run/{a}")], "third": [Route("GET", "/run/{b}")]}
    with pytest.raises(ModelError, match=r"'second' and 'first' both answer POST /run/\{b\}"):
        check_routes("second", [Route("POST", "/run/{b}")], others)
    check_routes("first", [Route("POST", "/run/{a}")], others)
    hidden = [Route("GET", "/metrics"), Route("POST", "/v2/models/{a}")]
    check_routes("second", hidden, {"first": hidden})  # nobody reaches either of them


@pytest.mark.parametrize(
    "route",
    [
        Route("TRACE", "/x"), Route("GET", "x"), Route("GET", "/x\n"), Route("GET", "/" + "x" * 300),
        Route("GET", "/{x"), Route("GET", "/{x:regex}"), Route("GET", "/{a}{b}"),
        Route("GET", "/{a:path}/{b:path}"),
    ],
)  # fmt: skip
def test_a_malformed_route_is_refused(route: Route) -> None:
    with pytest.raises(ModelError):
        check_routes("m", [route], {})


def test_a_model_has_a_limited_number_of_routes() -> None:
    with pytest.raises(ModelError, match="at most"):
        check_routes("m", [Route("GET", f"/{number}") for number in range(65)], {})


def test_a_table_has_a_limited_number_of_routes() -> None:
    models = {f"m{n:02}": [Route("GET", f"/{n}/{k}/{{x}}") for k in range(60)] for n in range(20)}
    table = RouteTable(models)
    assert repr(table) == "<RouteTable of 0 paths and 1024 patterns>"
    assert table.find("GET", "/0/1/x")[0] == ("m00", "/0/1/{x}")


def test_routes_below_the_meshs_own_paths_are_told() -> None:
    routes = [Route("GET", "/metrics"), Route("GET", "/v2/x"), Route("GET", "/metricsx")]
    assert hidden_routes(routes) == (routes[0], routes[1])


def test_a_route_that_another_node_sent_malformed_does_not_break_the_table() -> None:
    slow = "/" + "{a:path}" * 20
    table = RouteTable({"m": [Route("GET", "/{x:regex}"), Route("GET", slow), Route("GET", "/1")]})
    assert table.find("GET", "/1")[0] == ("m", "/1")
    assert table.find("GET", "/" + "x" * 8000)[0] is None
