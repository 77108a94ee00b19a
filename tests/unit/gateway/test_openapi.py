"""The API's description: every route in it, every deployed model, and a page that shows it without internet."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from meshnode.gateway import docs_page
from meshnode.gateway.openapi_schemas import tensor_schema
from meshnode.gateway.protocols.http import HttpRequest, HttpResponse
from meshnode.gateway.protocols.status import HttpRefusal
from meshnode.models.execution import Execution, Interface, Route
from meshnode.models.exposure import Exposure
from meshnode.models.http_calls import json_tensors
from meshnode.models.manifest import Manifest
from meshnode.types import DataType
from tests.unit.gateway.conftest import spec
from tests.unit.gateway.test_model_calls import chat, shop
from tests.unit.gateway.test_scopes import METHODS, NEEDED

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.gateway.dispatch import Dispatcher
    from meshnode.gateway.operations import Operation

_VALUES = {"model": "digits", "version": "1", "index": "0"}


def got(dispatcher: Dispatcher, path: str) -> HttpResponse:
    response = dispatcher.match("GET", path).answer(HttpRequest("GET", path, "", {}), "id-1")
    assert isinstance(response, HttpResponse)
    return response


def described(dispatcher: Dispatcher) -> dict[str, Any]:
    body = got(dispatcher, "/openapi.json").body
    assert isinstance(body, bytes)
    found: dict[str, Any] = json.loads(body)
    return found


def sample(operation: Operation) -> str:
    filled = re.sub(r"\{(\w+)\}", lambda found: _VALUES.get(found[1], "x1"), operation.path)
    return (operation.schema_path or filled).replace("{model}", "digits").partition("?")[0]


def pattern(path: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(path)))


def test_every_operation_has_a_route_with_its_scope(
    dispatcher: Dispatcher, serve: Callable[..., None]
) -> None:
    serve()
    for operation in dispatcher.operations:
        try:
            match = dispatcher.match(operation.method, sample(operation))
        except HttpRefusal as refusal:
            pytest.fail(f"{operation.method} {operation.path} has no route: {refusal}")
        assert match.scope is operation.scope, operation.path
        assert match.infers is operation.infers, operation.path


def test_every_route_has_an_operation(dispatcher: Dispatcher) -> None:
    described = [(each.method, pattern(each.path)) for each in dispatcher.operations]
    paths = {*NEEDED, *(path for path in dispatcher._fixed if not path.endswith("/"))}
    for path in sorted(paths):
        for method in METHODS:
            if method == "HEAD":
                continue
            try:
                dispatcher.match(method, path)
            except HttpRefusal:
                continue
            assert any(method == each and found.fullmatch(path) for each, found in described), (
                f"{method} {path} has no operation"
            )


def test_no_two_operations_are_the_same(dispatcher: Dispatcher) -> None:
    seen = [(each.method, re.sub(r"\{\w+\}", "{}", each.path)) for each in dispatcher.operations]
    assert sorted({each for each in seen if seen.count(each) > 1}) == []


def test_the_description_refers_to_nothing_that_it_lacks(
    dispatcher: Dispatcher, serve: Callable[..., None]
) -> None:
    serve()
    serve(what=chat())
    whole = described(dispatcher)
    assert whole["openapi"] == "3.1.0"
    references = set(re.findall(r'"\$ref":\s*"#/components/schemas/([^"]+)"', json.dumps(whole)))
    assert references <= set(whole["components"]["schemas"])
    ids = [
        operation["operationId"] for item in whole["paths"].values() for operation in item.values()
    ]
    assert len(set(ids)) == len(ids)


def test_errors_are_described_in_each_dialects_own_form(dispatcher: Dispatcher) -> None:
    whole = described(dispatcher)

    def error_of(path: str, method: str) -> set[str]:
        answer = whole["paths"][path][method]["responses"]["400"]["content"]["application/json"]
        name = answer["schema"]["$ref"].rpartition("/")[2]
        return set(whole["components"]["schemas"][name]["required"])

    assert error_of("/mesh/v1/models/{model}/infer", "post") == {"error", "code"}
    assert error_of("/v2/models/{model}", "get") == {"error"}


def test_a_deployed_model_is_described_by_its_own_tensors(
    dispatcher: Dispatcher, serve: Callable[..., None]
) -> None:
    before = described(dispatcher)
    assert "/mesh/v1/models/digits/infer" not in before["paths"]
    serve()
    operation = described(dispatcher)["paths"]["/mesh/v1/models/digits/infer"]["post"]
    body = operation["requestBody"]["content"]["application/json"]["schema"]
    inputs = body["properties"]["inputs"]
    assert inputs["required"] == ["x"]
    nested, encoded = inputs["properties"]["x"]["anyOf"]
    assert nested["items"]["minItems"] == nested["items"]["maxItems"] == 4
    assert "minItems" not in nested
    assert encoded["required"] == ["b64"]
    made = operation["responses"]["200"]["content"]["application/json"]["schema"]["properties"]
    assert made["model"] == {"const": "digits"}
    assert "x" in made["outputs"]["properties"]


@pytest.mark.parametrize(
    ("datatype", "element"),
    [
        (DataType.BOOL, {"type": "boolean"}),
        (DataType.UINT8, {"type": "integer", "minimum": 0, "maximum": 255}),
        (DataType.INT16, {"type": "integer", "minimum": -32768, "maximum": 32767}),
    ],
)
def test_each_datatype_has_its_range(datatype: DataType, element: dict[str, Any]) -> None:
    assert tensor_schema(spec("x", (-1,), datatype)) == {"type": "array", "items": element}
    assert "anyOf" in tensor_schema(spec("x", (), DataType.BYTES))
    assert "anyOf" in tensor_schema(spec("x", (), DataType.FP64))


def typed(schema: object, **more: Any) -> Manifest:
    inputs, outputs = json_tensors()
    execution = Execution(interface=Interface.JSON, schema=msgspec.json.encode(schema).decode())
    return Manifest("cars", 1, "python", "", inputs, outputs, 0, (), "", execution, **more)


def test_a_model_that_states_its_schema_is_described_by_it(
    dispatcher: Dispatcher, serve: Callable[..., None]
) -> None:
    request = {
        "type": "object",
        "properties": {"box": {"$ref": "#/$defs/Box"}},
        "$defs": {"Box": {"type": "object", "properties": {"in": {"$ref": "#/$defs/Box"}}}},
    }
    serve(what=typed({"request": request}, exposure=Exposure("/count-cars")))
    whole = described(dispatcher)
    moved = {"$ref": "#/components/schemas/cars.request.Box"}
    for path in ("/inference/cars", "/count-cars"):
        body = whole["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        assert body["schema"]["properties"] == {"box": moved}
    assert whole["components"]["schemas"]["cars.request.Box"]["properties"] == {"in": moved}


@pytest.mark.parametrize("schema", [[], "x", {"request": 1}, {"request": {"$defs": []}}])
def test_a_schema_that_is_none_is_anything(
    dispatcher: Dispatcher, serve: Callable[..., None], schema: object
) -> None:
    serve(what=typed(schema))
    assert "/inference/cars" in described(dispatcher)["paths"]


def test_a_models_own_routes_are_described_as_it_states_them(
    dispatcher: Dispatcher, serve: Callable[..., None]
) -> None:
    item = {"$ref": "#/components/schemas/Item"}
    stated = {
        "paths": {
            "/buy/{item}": {"post": {"operationId": "buy", "responses": {"200": item}}},
            "/mesh/v1/status": {"get": {"summary": "not the mesh's"}},
        },
        "components": {"schemas": {"Item": {"type": "object"}}},
    }
    manifest = shop(Route("POST", "/buy/{item}"))
    execution = msgspec.structs.replace(
        manifest.execution, schema=msgspec.json.encode(stated).decode()
    )
    serve(what=msgspec.structs.replace(manifest, execution=execution))
    whole = described(dispatcher)
    operation = whole["paths"]["/buy/{item}"]["post"]
    assert operation["tags"] == ["Model shop"]
    assert operation["responses"]["200"] == {"$ref": "#/components/schemas/shop.Item"}
    assert whole["paths"]["/mesh/v1/status"]["get"]["summary"] == "This node"


def test_the_description_is_made_anew_only_when_something_has_changed(
    dispatcher: Dispatcher, serve: Callable[..., None]
) -> None:
    assert got(dispatcher, "/openapi.json") is got(dispatcher, "/openapi.json")
    before = got(dispatcher, "/openapi.json")
    serve()
    assert got(dispatcher, "/openapi.json") is not before


@pytest.mark.parametrize("path", ["/docs", "/docs/", "/docs/page.js", "/docs/page.css"])
def test_the_page_needs_nothing_from_elsewhere_and_cannot_be_framed(
    dispatcher: Dispatcher, path: str
) -> None:
    response = got(dispatcher, path)
    policy = response.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert response.headers["X-Frame-Options"] == "DENY"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert isinstance(response.body, bytes)
    assert re.findall(rb"https?://", response.body) == []
    assert b"innerHTML" not in response.body


def test_the_page_is_part_of_the_package() -> None:
    assert all((docs_page._FOLDER / name).is_file() for name, _ in docs_page._FILES.values())


def ids(whole: dict[str, Any]) -> list[str]:
    return [each["operationId"] for item in whole["paths"].values() for each in item.values()]


@pytest.mark.parametrize("path", ["/cars/infer", "/x/stream", "/x/cars", "/mesh-v1/models/cars/infer"])  # fmt: skip
def test_a_path_of_a_deployers_choice_takes_no_other_operations_id(
    dispatcher: Dispatcher, serve: Callable[..., None], path: str
) -> None:
    serve(what=typed({}, exposure=Exposure(path)))
    serve(what=shop(Route("POST", "/buy")))
    found = ids(described(dispatcher))
    assert sorted({each for each in found if found.count(each) > 1}) == []


def test_models_cannot_take_each_others_ids(
    dispatcher: Dispatcher, serve: Callable[..., None]
) -> None:
    stated = {
        "paths": {f"/{path}": {"post": {"operationId": "buy", "responses": {}}} for path in "ab"}
    }
    manifest = shop(Route("POST", "/a"), Route("POST", "/b"))
    execution = msgspec.structs.replace(
        manifest.execution, schema=msgspec.json.encode(stated).decode()
    )
    serve(what=msgspec.structs.replace(manifest, execution=execution))
    found = ids(described(dispatcher))
    assert "shop_buy" in found
    assert len(set(found)) == len(found)


def test_the_choices_of_a_discriminated_union_move_with_their_definitions(
    dispatcher: Dispatcher, serve: Callable[..., None]
) -> None:
    request = {
        "discriminator": {"propertyName": "kind", "mapping": {"a": "#/$defs/A", "b": "http://x/b"}},
        "oneOf": [{"$ref": "#/$defs/A"}],
        "$defs": {"A": {"type": "object"}},
    }
    serve(what=typed({"request": request}))
    whole = described(dispatcher)
    body = whole["paths"]["/inference/cars"]["post"]["requestBody"]["content"]["application/json"]
    moved = "#/components/schemas/cars.request.A"
    assert body["schema"]["discriminator"] == {"propertyName": "kind", "mapping": {"a": moved}}
    assert body["schema"]["oneOf"] == [{"$ref": moved}]


@pytest.mark.parametrize(
    "reference", ["http://evil.example/x", "//evil.example", "file:///etc/passwd", "#", "#/$defs/Missing", "#/paths/x"]
)  # fmt: skip
@pytest.mark.parametrize("key", ["$ref", "$dynamicRef", "$id", "$schema"])
def test_a_models_schema_refers_to_nothing_outside_itself(
    dispatcher: Dispatcher, serve: Callable[..., None], key: str, reference: str
) -> None:
    deep: dict[str, Any] = {"items": {key: reference}, "properties": {"$ref": {"type": "string"}}}
    serve(what=typed({"request": deep, "response": {"$defs": {"A b": deep}}}))
    whole = described(dispatcher)
    content = whole["paths"]["/inference/cars"]["post"]["requestBody"]["content"]
    assert content["application/json"]["schema"] == {
        "items": {},
        "properties": {"$ref": {"type": "string"}},
    }
    assert whole["components"]["schemas"]["cars.response.A_b"]["items"] == {}


def test_a_schema_that_is_nested_without_end_is_cut_off(
    dispatcher: Dispatcher, serve: Callable[..., None]
) -> None:
    deep: dict[str, Any] = {}
    for _ in range(400):
        deep = {"items": deep}
    serve(what=typed({"request": deep}))
    assert "/inference/cars" in described(dispatcher)["paths"]


def test_a_model_has_no_say_in_where_calls_and_keys_go(
    dispatcher: Dispatcher, serve: Callable[..., None]
) -> None:
    elsewhere = [{"url": "http://evil.example"}]
    stated = {"paths": {"/buy": {"servers": elsewhere, "post": {"servers": elsewhere}}}}
    manifest = shop(Route("POST", "/buy"))
    execution = msgspec.structs.replace(
        manifest.execution, schema=msgspec.json.encode(stated).decode()
    )
    serve(what=msgspec.structs.replace(manifest, execution=execution))
    assert "evil" not in json.dumps(described(dispatcher))


def test_the_endpoints_of_a_model_that_takes_tensors_are_described(
    dispatcher: Dispatcher, serve: Callable[..., None], manifest: Manifest
) -> None:
    picture = (spec("picture", (-1, 3, 32, 32)), spec("text", (1,), DataType.BYTES))
    serve(what=msgspec.structs.replace(manifest, inputs=picture, exposure=Exposure("/numbers")))
    for path in ("/inference/digits", "/numbers"):
        operation = described(dispatcher)["paths"][path]["post"]
        content = operation["requestBody"]["content"]
        schema = content["application/json"]["schema"]
        assert schema["required"] == ["picture", "text"]
        files = content["multipart/form-data"]["schema"]["properties"]
        assert set(files) == {"picture", "text"}
        assert {"image/*", "application/octet-stream"} < set(content)
        assert {"200", "202", "415", "500", "504"} < set(operation["responses"])
        made = operation["responses"]["200"]["content"]["application/json"]["schema"]
        assert set(made["properties"]) == {"x"}


def test_files_that_a_predictor_takes_are_described(
    dispatcher: Dispatcher, serve: Callable[..., None]
) -> None:
    manifest = typed({})
    execution = msgspec.structs.replace(
        manifest.execution, parameters=(("meshnode_upload", "image=image/png,image/jpeg"),)
    )
    serve(what=msgspec.structs.replace(manifest, execution=execution))
    operation = described(dispatcher)["paths"]["/inference/cars"]["post"]
    content = operation["requestBody"]["content"]
    assert list(content) == ["application/json", "multipart/form-data", "image/png", "image/jpeg"]
    assert set(content["multipart/form-data"]["schema"]["properties"]) == {"image"}


def test_every_operation_that_reads_a_body_says_which(dispatcher: Dispatcher) -> None:
    whole = described(dispatcher)
    for operation in dispatcher.operations:
        shown = whole["paths"][operation.path][operation.method.lower()]
        if operation.infers:
            content = shown["requestBody"]["content"]
            assert "schema" in content["application/json"], operation.path
            assert {"202", "500", "504"} <= set(shown["responses"]), operation.path
            heeded = {each["name"] for each in shown["parameters"]}
            assert {"Prefer", "Cache-Control"} <= heeded, operation.path
            assert ("Idempotency-Key" in heeded) is (operation.method == "POST")
    for path in ("index", "models/{model}/load", "models/{model}/unload"):
        assert "requestBody" in whole["paths"][f"/v2/repository/{path}"]["post"]


def test_the_description_is_valid(dispatcher: Dispatcher, serve: Callable[..., None]) -> None:
    validator = pytest.importorskip("openapi_spec_validator")
    request = {
        "discriminator": {"propertyName": "kind", "mapping": {"a": "#/$defs/A"}},
        "oneOf": [{"$ref": "#/$defs/A"}],
        "$defs": {"A": {"type": "object", "properties": {"next": {"$ref": "#/$defs/A"}}}},
    }
    serve()
    serve(what=typed({"request": request}, exposure=Exposure("/cars/infer")))
    validator.validate(described(dispatcher))
