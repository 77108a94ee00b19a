"""meshnode: a peer-to-peer edge inference mesh.

`meshnode join` on each device makes them one mesh; every node answers HTTP for all of it. Programs
talk to it with the client::

    from meshnode import MeshClient

    with MeshClient("http://127.0.0.1:8470") as mesh:
        result = mesh.infer("digits", {"image": array})

Importing this package imports nothing else: the client comes with the first use of its name.
The layers of this package, and what each may import, are in docs/ARCHITECTURE.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshnode.client.async_calls import AsyncStream
    from meshnode.client.async_mesh import AsyncMeshClient
    from meshnode.client.blocking_calls import Stream
    from meshnode.client.deployment_results import (
        DeploymentChange,
        DeploymentDiff,
        DeploymentEdit,
        DeploymentRevision,
    )
    from meshnode.client.hints import Hints
    from meshnode.client.infer import InferResult, Route
    from meshnode.client.jobs import JobInfo, Webhook
    from meshnode.client.mesh import MeshClient
    from meshnode.client.native import PlainResult
    from meshnode.client.results import (
        DeployedVersion,
        DeploymentInfo,
        DeployProgress,
        Ineligible,
        InviteInfo,
        KeyInfo,
        MeshEvent,
        ModelInfo,
        ModelMetadata,
        NewKey,
        NodeInfo,
        NodeStatus,
        ReplicaInfo,
        TensorInfo,
    )
    from meshnode.client.rollout_results import RolloutInfo
    from meshnode.client.tensors import InputTensor
    from meshnode.client.trust_results import (
        Eviction,
        NodeRole,
        RevokedNode,
        TrustedNode,
        TrustInfo,
    )
    from meshnode.errors import MeshError, PeerError, UsageError

__version__ = "0.1.0"

__all__ = [
    "AsyncMeshClient",
    "AsyncStream",
    "DeployProgress",
    "DeployedVersion",
    "DeploymentChange",
    "DeploymentDiff",
    "DeploymentEdit",
    "DeploymentInfo",
    "DeploymentRevision",
    "Eviction",
    "Hints",
    "Ineligible",
    "InferResult",
    "InputTensor",
    "InviteInfo",
    "JobInfo",
    "KeyInfo",
    "MeshClient",
    "MeshError",
    "MeshEvent",
    "ModelInfo",
    "ModelMetadata",
    "NewKey",
    "NodeInfo",
    "NodeRole",
    "NodeStatus",
    "PeerError",
    "PlainResult",
    "ReplicaInfo",
    "RevokedNode",
    "RolloutInfo",
    "Route",
    "Stream",
    "TensorInfo",
    "TrustInfo",
    "TrustedNode",
    "UsageError",
    "Webhook",
    "__version__",
]

if not TYPE_CHECKING:  # for a type checker every name is here already, and no other exists
    _RESULTS = "meshnode.client.results"
    _TRUST = "meshnode.client.trust_results"
    _HOMES = {
        "AsyncMeshClient": "meshnode.client.async_mesh",
        "AsyncStream": "meshnode.client.async_calls",
        "InferResult": "meshnode.client.infer",
        "InputTensor": "meshnode.client.tensors",
        "Hints": "meshnode.client.hints",
        "JobInfo": "meshnode.client.jobs",
        "MeshClient": "meshnode.client.mesh",
        "MeshError": "meshnode.errors",
        "PeerError": "meshnode.errors",
        "PlainResult": "meshnode.client.native",
        "RolloutInfo": "meshnode.client.rollout_results",
        "Route": "meshnode.client.infer",
        "Stream": "meshnode.client.blocking_calls",
        "UsageError": "meshnode.errors",
        "Webhook": "meshnode.client.jobs",
        **dict.fromkeys(
            ("DeploymentChange", "DeploymentDiff", "DeploymentEdit", "DeploymentRevision"),
            "meshnode.client.deployment_results",
        ),
        **dict.fromkeys(
            ("Eviction", "NodeRole", "RevokedNode", "TrustInfo", "TrustedNode"), _TRUST
        ),
    }

    def __getattr__(name: str) -> object:
        """Import a public name on its first use."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import importlib

        value = getattr(importlib.import_module(_HOMES.get(name, _RESULTS)), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        """Return the public names, with those that are not imported yet."""
        return sorted(set(globals()) | set(__all__))
