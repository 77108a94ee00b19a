"""Limits of every boundary, each with its reason beside it.

Per-core settings (probe intervals, retry budgets) live beside their cores as frozen dataclasses;
this module holds what several layers share.
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * 1024

DEFAULT_MESH_PORT: Final = 8471
"""TCP and UDP port of the mesh."""

DEFAULT_HTTP_PORT: Final = 8470
"""Port of the HTTP gateway."""

MAX_BODY_BYTES: Final = 64 * MIB
"""An HTTP request body or one response part: a batch of 100 images as float32, with room."""

MAX_HEADER_BYTES: Final = 16 * KIB
"""All headers of an HTTP request together: twice what nginx and Node.js accept."""

MAX_META_BYTES: Final = 65_535
"""The message part of a link frame (its length field has 16 bits); state travels in pieces."""

MAX_FRAME_DATA_BYTES: Final = 256 * KIB
"""Data of one link frame: small enough that a large tensor never delays a small one for long."""

MAX_STREAMS_PER_LINK: Final = 1024
"""Streams that a peer may have open at once on one link; more than a gateway's 64 x 16 clients."""

MAX_DATAGRAM_BYTES: Final = 1400
"""A UDP payload with encryption: fits an Ethernet frame less IPv6, UDP and a tunnel's header."""

MAX_LINKS_UNAUTHENTICATED: Final = 64
"""Connections that have not finished their hello; each may hold one handshake of memory."""

HANDSHAKE_TIMEOUT_S: Final = 5.0
"""TLS and hello together: several round trips at 600 ms (a satellite), and no slow loris."""

MAX_NAME_LENGTH: Final = 63
"""Node, region and zone names: a DNS label."""

MAX_LABELS: Final = 32
"""Labels of one node."""

MAX_MODELS: Final = 4096
"""Models that a mesh's tables hold; each costs a few hundred bytes on every node."""

MAX_INVITE_TTL_S: Final = 30 * 24 * 3600
"""An invite is a key to the mesh: long enough to post a device, too short to be forgotten for years."""

MAX_MEMBERS: Final = 8192
"""Members that a node's tables hold, dead ones included."""

MAX_MODEL_FILE_BYTES: Final = 64 * 1024 * MIB
"""One file of a model: more than any device of the mesh can hold in memory."""

BLOB_CHUNK_BYTES: Final = MIB
"""A model file travels in chunks of this size, so that a broken transfer resumes near its end."""
