"""meshnode on a device whose relay does harm: `hole` in the file `relays` of its home folder swallows all, `loses` a part in twenty.

It answers for itself as any other node does, and says that it would relay.
"""

from __future__ import annotations

import random
from pathlib import Path

from meshnode.cli.main import main
from meshnode.net import relay

_FILE = Path.home() / "relays"
_RNG = random.Random(1)
_pass_on = relay._End.part


def _part(end: relay._End, meta: bytes, data: memoryview, is_end: bool) -> None:
    harm = _FILE.read_text(encoding="utf-8") if _FILE.exists() else ""
    if data.nbytes and (harm == "hole" or (harm == "loses" and _RNG.random() < 0.05)):
        end.connection.consumed(end.stream, data.nbytes)
    else:
        _pass_on(end, meta, data, is_end)


if __name__ == "__main__":
    relay._End.part = _part  # type: ignore[method-assign, assignment]
    main()
