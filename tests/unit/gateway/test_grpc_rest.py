"""Each call but inferences is a REST request, and its answer is read from that request's document."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from tritonclient.grpc import service_pb2

from meshnode.gateway.protocols.grpc_rest import TRANSLATIONS, RestCall, encode_reply
from meshnode.gateway.protocols.grpc_schema import SERVICE, messages


def asked(name: str, /, **fields: Any) -> RestCall:
    translation = TRANSLATIONS[name]
    return translation.asked(getattr(service_pb2, translation.request)(**fields))


def told(name: str, document: Any) -> Any:
    translation = TRANSLATIONS[name]
    encoded = encode_reply(translation, translation.told(document))
    return getattr(service_pb2, translation.reply).FromString(encoded)


@pytest.mark.parametrize(
    ("name", "fields", "path"),
    [
        ("ServerLive", {}, "/v2/health/live"),
        ("ServerReady", {}, "/v2/health/ready"),
        ("ServerMetadata", {}, "/v2"),
        ("ModelReady", {"name": "m", "version": "2"}, "/v2/models/m/versions/2/ready"),
        ("ModelMetadata", {"name": "m"}, "/v2/models/m"),
        ("ModelMetadata", {"name": "../x", "version": "a/b"}, "/v2/models/..%2Fx/versions/a%2Fb"),
        ("ModelConfig", {"name": "m"}, "/v2/models/m/config"),
        ("ModelStatistics", {}, "/v2/models/stats"),
        ("ModelStatistics", {"name": "m", "version": "1"}, "/v2/models/m/versions/1/stats"),
        ("TraceSetting", {}, "/v2/trace/setting"),
        ("TraceSetting", {"model_name": "m"}, "/v2/models/m/trace/setting"),
        ("LogSettings", {}, "/v2/logging"),
    ],
)
def test_what_only_reads_is_a_get(name: str, fields: dict[str, Any], path: str) -> None:
    assert asked(name, **fields) == RestCall("GET", path)


def test_a_model_is_loaded_with_its_configuration_and_files() -> None:
    request = service_pb2.RepositoryModelLoadRequest(model_name="m")
    request.parameters["config"].string_param = "{}"
    request.parameters["file:1/model.onnx"].bytes_param = b"\xff\0"
    request.parameters["empty"].SetInParent()
    assert TRANSLATIONS["RepositoryModelLoad"].asked(request) == RestCall(
        "POST",
        "/v2/repository/models/m/load",
        {"parameters": {"config": "{}", "file:1/model.onnx": "/wA=", "empty": None}},
    )
    assert asked("RepositoryModelLoad", model_name="m").body == {}
    request = service_pb2.RepositoryModelUnloadRequest(model_name="m")
    request.parameters["unload_dependents"].bool_param = True
    assert TRANSLATIONS["RepositoryModelUnload"].asked(request) == RestCall(
        "POST", "/v2/repository/models/m/unload", {"parameters": {"unload_dependents": True}}
    )
    for name in ("RepositoryModelLoad", "RepositoryModelUnload"):
        assert not told(name, None).ListFields()


def test_the_index_is_asked_with_what_is_wanted() -> None:
    call = RestCall("POST", "/v2/repository/index", {"ready": True})
    assert asked("RepositoryIndex", ready=True) == call
    found = told("RepositoryIndex", [{"name": "m", "version": "1", "state": "READY", "new": 1}])
    assert [(each.name, each.version, each.state) for each in found.models] == [("m", "1", "READY")]


def test_settings_are_asked_and_told_in_their_own_types() -> None:
    request = service_pb2.TraceSettingRequest()
    request.settings["trace_level"].value.extend(["TIMESTAMPS", "TENSORS"])
    request.settings["trace_rate"].value.append("5")
    request.settings["trace_file"].SetInParent()
    assert TRANSLATIONS["TraceSetting"].asked(request) == RestCall(
        "POST",
        "/v2/trace/setting",
        {"trace_level": ["TIMESTAMPS", "TENSORS"], "trace_rate": "5", "trace_file": None},
    )
    found = told("TraceSetting", {"trace_level": ["OFF"], "trace_rate": 1000})
    assert list(found.settings["trace_level"].value) == ["OFF"]
    assert list(found.settings["trace_rate"].value) == ["1000"]

    logging = service_pb2.LogSettingsRequest()
    logging.settings["log_info"].bool_param = False
    logging.settings["log_verbose_level"].uint32_param = 2
    logging.settings["log_file"].SetInParent()
    assert TRANSLATIONS["LogSettings"].asked(logging) == RestCall(
        "POST", "/v2/logging", {"log_info": False, "log_verbose_level": 2, "log_file": None}
    )
    found = told("LogSettings", {"log_info": True, "log_verbose_level": 1, "log_file": "x"})
    assert found.settings["log_info"].bool_param
    assert found.settings["log_verbose_level"].uint32_param == 1
    assert found.settings["log_file"].string_param == "x"


def test_statistics_and_configurations_are_read_by_the_names_of_their_fields() -> None:
    duration = {"count": 3, "ns": 2**40}
    found = told(
        "ModelStatistics",
        {"model_stats": [{"name": "m", "version": "1", "inference_stats": {"success": duration}}]},
    )
    assert found.model_stats[0].inference_stats.success.ns == 2**40
    config = told("ModelConfig", {"name": "m", "max_batch_size": 8, "input": [{"dims": [4]}]})
    assert (config.config.max_batch_size, list(config.config.input[0].dims)) == (8, [4])


def test_an_unknown_model_is_not_ready_and_no_error() -> None:
    assert TRANSLATIONS["ModelReady"].otherwise == {"ready": False}
    assert not told("ModelReady", {"name": "m", "ready": False}).ready


def test_every_method_of_the_service_but_inferences_and_shared_memory_is_translated() -> None:
    package, _, name = SERVICE.rpartition(".")
    assert package == "inference"
    service = messages().DESCRIPTOR.services_by_name[name]
    others = {each for each in service.methods_by_name if "SharedMemory" not in each}
    assert others - {"ModelInfer", "ModelStreamInfer"} == set(TRANSLATIONS)


def test_the_messages_are_those_of_the_clients_own_package() -> None:
    assert messages().ModelInferRequest is service_pb2.ModelInferRequest


def test_the_messages_are_loaded_without_the_client_around_them() -> None:
    """A node that serves gRPC needs no numpy for it; told apart in a process of its own."""
    code = (
        "import sys\n"
        "from meshnode.gateway.protocols import grpc_schema\n"
        "message = grpc_schema.messages().ModelInferRequest(model_name='m')\n"
        "loaded = {'numpy', 'grpc', 'tritonclient.grpc', 'tritonclient.grpc._client'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
        "assert message.SerializeToString() == b'\\n\\x01m'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
