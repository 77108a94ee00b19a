"""What TensorFlow Serving's clients read about a model: the states of its versions, and its signature."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from meshnode.gateway.protocols.tfserving import SIGNATURE
from meshnode.types import DataType, ReplicaState

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from meshnode.models.manifest import Manifest, TensorSpec

_TYPES: Final = {
    DataType.BOOL: "DT_BOOL", DataType.UINT8: "DT_UINT8", DataType.UINT16: "DT_UINT16",
    DataType.UINT32: "DT_UINT32", DataType.UINT64: "DT_UINT64", DataType.INT8: "DT_INT8",
    DataType.INT16: "DT_INT16", DataType.INT32: "DT_INT32", DataType.INT64: "DT_INT64",
    DataType.FP16: "DT_HALF", DataType.BF16: "DT_BFLOAT16", DataType.FP32: "DT_FLOAT",
    DataType.FP64: "DT_DOUBLE", DataType.BYTES: "DT_STRING",
}  # fmt: skip

_STATES: Final = {
    ReplicaState.READY: "AVAILABLE",
    ReplicaState.FETCHING: "LOADING",
    ReplicaState.LOADING: "LOADING",
    ReplicaState.PAUSED: "LOADING",
    ReplicaState.UNLOADING: "UNLOADING",
    ReplicaState.FAILED: "END",
}
_ORDER: Final = ("AVAILABLE", "LOADING", "UNLOADING", "END", "START")


def version_status(
    versions: Iterable[int], replicas: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return the state of each version on the mesh, the newest first.

    Args:
        versions: Those that are asked for.
        replicas: As `GET /mesh/v1/models/NAME` shows them. A version is as far as the replica that is furthest;
            one without replicas is `START`, one whose replicas all failed `END`, with the first reason.
    """
    return [_status(version, replicas) for version in sorted(versions, reverse=True)]


def _status(version: int, replicas: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    mine = [each for each in replicas if each.get("version") == version]
    states = {_STATES[ReplicaState(each["state"])] for each in mine} or {"START"}
    state = next(state for state in _ORDER if state in states)
    reason = next((str(each["failure"]) for each in mine if each.get("failure")), "")
    failed = state == "END"
    return {
        "version": str(version),
        "state": state,
        "status": {
            "error_code": "UNKNOWN" if failed else "OK",
            "error_message": reason if failed else "",
        },
    }


def metadata(manifest: Manifest) -> dict[str, Any]:
    """Return a model's metadata: its only signature."""
    signature = {
        "inputs": {spec.name: _tensor_info(spec) for spec in manifest.inputs},
        "outputs": {spec.name: _tensor_info(spec) for spec in manifest.outputs},
        "method_name": "tensorflow/serving/predict",
    }
    return {
        "model_spec": {
            "name": manifest.model,
            "signature_name": "",
            "version": str(manifest.version),
        },
        "metadata": {"signature_def": {"signature_def": {SIGNATURE: signature}}},
    }


def _tensor_info(spec: TensorSpec) -> dict[str, Any]:
    return {
        "dtype": _TYPES[spec.datatype],
        "tensor_shape": {
            "dim": [{"size": str(size), "name": ""} for size in spec.shape],
            "unknown_rank": False,
        },
        "name": f"{spec.name}:0",
    }
