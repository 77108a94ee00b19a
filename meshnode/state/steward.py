"""What stewards and gateways say about autoscaling and releases, in their own signed states.

    `steward/NAME`    a `StewardWord`: the number of replicas of a deployment, by the node that decides it
    `waiting`         a `Waiting`: models that sleep, for which requests wait at this node's gateway

Neither is in the desired state: deciding so is no operator's work, and leaves no revisions.
"""

from __future__ import annotations

from typing import Annotated, Final, TypeVar

import msgspec

from meshnode.errors import ProtocolError
from meshnode.limits import (
    MAX_DEPLOYMENT_REPLICAS,
    MAX_MODEL_NAME_LENGTH,
    MAX_RECORD_WALL_S,
    MAX_STEWARD_EPOCH,
    MAX_STEWARD_REASON_LENGTH,
    MAX_WAITING_FOR_REPLICAS,
    MAX_WAITING_MODELS,
)
from meshnode.rollout import Progress

WAITING_KEY: Final = "waiting"
"""Key of a node's own state under which its gateway says who waits."""

_PREFIX: Final = "steward/"

_Millis = Annotated[int, msgspec.Meta(ge=0, le=1000 * MAX_RECORD_WALL_S)]


class StewardWord(msgspec.Struct, array_like=True, frozen=True):
    """What a deployment's steward has decided.

    Attributes:
        epoch: Counts the stewards: each one that takes over writes one more than the word that it goes on from.
        replicas: How many there are to be.
        reason: Why, for people.
        at_ms: When it was decided, in milliseconds since the Unix epoch.
        revision: Of the deployment that it was decided for: wall milliseconds and counter.
        start_ms: How long a replica takes to start, lately; 0 if unknown.
        release: How far the deployment's release has come; None where it has none.
    """

    epoch: Annotated[int, msgspec.Meta(ge=1, le=MAX_STEWARD_EPOCH)]
    replicas: Annotated[int, msgspec.Meta(ge=0, le=MAX_DEPLOYMENT_REPLICAS)]
    reason: Annotated[str, msgspec.Meta(max_length=MAX_STEWARD_REASON_LENGTH)]
    at_ms: _Millis
    revision: tuple[_Millis, Annotated[int, msgspec.Meta(ge=0, le=2**32)]] = (0, 0)
    start_ms: _Millis = 0
    release: Progress | None = None

    def encode(self) -> bytes:
        """Return the value for the node's own state."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def decode(cls, value: bytes) -> StewardWord:
        """Read another node's word.

        Raises:
            ProtocolError: if the bytes are none.
        """
        return _read(_words, value)


class Waiting(msgspec.Struct, array_like=True, frozen=True):
    """Requests that wait at a gateway because the model that they ask for sleeps.

    Attributes:
        models: Model and number of requests, by name.
    """

    models: Annotated[
        tuple[
            tuple[
                Annotated[str, msgspec.Meta(max_length=MAX_MODEL_NAME_LENGTH)],
                Annotated[int, msgspec.Meta(ge=1, le=MAX_WAITING_FOR_REPLICAS)],
            ],
            ...,
        ],
        msgspec.Meta(max_length=MAX_WAITING_MODELS),
    ]

    def encode(self) -> bytes:
        """Return the value for the node's own state."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def decode(cls, value: bytes) -> Waiting:
        """Read another node's.

        Raises:
            ProtocolError: if the bytes are none.
        """
        return _read(_waiting, value)


def steward_key(deployment: str) -> str:
    """Return the key of a node's own state that holds its word about a deployment."""
    return _PREFIX + deployment


def deployment_of(key: str) -> str | None:
    """Return which deployment a key of a node's own state is a steward's word about, or None."""
    return key.removeprefix(_PREFIX) if key.startswith(_PREFIX) else None


_words = msgspec.msgpack.Decoder(StewardWord)
_waiting = msgspec.msgpack.Decoder(Waiting)

_Value = TypeVar("_Value")


def _read(decoder: msgspec.msgpack.Decoder[_Value], value: bytes) -> _Value:
    try:
        return decoder.decode(value)
    except (msgspec.MsgspecError, ValueError) as error:
        raise ProtocolError(f"what a node says about autoscaling is not valid: {error}") from error
