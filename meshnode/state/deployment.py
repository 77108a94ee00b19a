"""A deployment: the desired state of one model on the mesh, as a value under `deployment/NAME`."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from meshnode.errors import ModelError, ProtocolError, TooLarge
from meshnode.limits import (
    MAX_DEPLOYMENT_REPLICAS,
    MAX_DEPLOYMENT_VERSIONS,
    MAX_DESIRED_VALUE_BYTES,
)
from meshnode.models.manifest import Manifest, check_manifest, check_model_name
from meshnode.types import NodeId

KEY_PREFIX: Final = "deployment/"
"""Keys of the desired state that hold deployments begin with this."""

_NODE_ID = re.compile(r"[a-z2-7]{32}")


class Deployment(msgspec.Struct, array_like=True, frozen=True):
    """What the mesh is to serve under one public name.

    Attributes:
        name: Public name of the model; each manifest carries it.
        manifests: The versions to serve.
        replicas: How many nodes are to serve each of them, 1 to 1,024.
        on: The nodes that it is pinned to; empty to let placement choose.
    """

    name: str
    manifests: tuple[Manifest, ...]
    replicas: int = 1
    on: tuple[NodeId, ...] = ()

    @property
    def key(self) -> str:
        """The deployment's key in the desired state."""
        return KEY_PREFIX + self.name

    def encode(self) -> bytes:
        """Return the value to put into the desired state.

        Raises:
            ModelError: if a field is not within its limits.
            TooLarge: if the manifests list so many files that the value exceeds its limit.
        """
        check_deployment(self)
        value = msgspec.msgpack.encode(self)
        if len(value) > MAX_DESIRED_VALUE_BYTES:
            raise TooLarge(
                f"the deployment {self.name!r} takes {len(value)} bytes, at most {MAX_DESIRED_VALUE_BYTES}: "
                "its versions have too many files"
            )
        return value

    @classmethod
    def decode(cls, value: bytes) -> Deployment:
        """Read a value of the desired state.

        Raises:
            ProtocolError: if the bytes are no deployment.
            ModelError: if a field is not within its limits.
        """
        try:
            deployment = _DECODER.decode(value)
        except (msgspec.MsgspecError, ValueError) as error:
            raise ProtocolError(f"a value is not a deployment: {error}") from error
        return check_deployment(deployment)


_DECODER = msgspec.msgpack.Decoder(Deployment)


def check_deployment(deployment: Deployment) -> Deployment:
    """Return a deployment if all of it is within limits.

    Raises:
        ModelError: naming the first field that is not.
    """
    name = check_model_name(deployment.name)
    if not 1 <= len(deployment.manifests) <= MAX_DEPLOYMENT_VERSIONS:
        raise ModelError(
            f"{name!r} has {len(deployment.manifests)} versions, not 1 to {MAX_DEPLOYMENT_VERSIONS}"
        )
    for manifest in deployment.manifests:
        check_manifest(manifest)
        if manifest.model != name:
            raise ModelError(f"a version of {name!r} belongs to the model {manifest.model!r}")
    versions = [manifest.version for manifest in deployment.manifests]
    if len(set(versions)) != len(versions):
        raise ModelError(f"{name!r} names a version twice")
    if not 1 <= deployment.replicas <= MAX_DEPLOYMENT_REPLICAS:
        raise ModelError(
            f"{name!r} wants {deployment.replicas} replicas, not 1 to {MAX_DEPLOYMENT_REPLICAS}"
        )
    if len(deployment.on) > MAX_DEPLOYMENT_REPLICAS or len(set(deployment.on)) != len(
        deployment.on
    ):
        raise ModelError(f"{name!r} is pinned to too many nodes, or to one of them twice")
    for node in deployment.on:
        if not _NODE_ID.fullmatch(node):
            raise ModelError(f"{name!r} is pinned to {node!r}, which is not the id of a node")
    return deployment
