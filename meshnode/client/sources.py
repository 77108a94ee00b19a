"""Models that are named by a URL: fetched to this machine, then deployed like any other path."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from meshnode.client.results import DeployProgress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

COPIES_FOLDER: Final = Path("sources") / "deployed"
"""Where in a data folder the command line keeps what it fetched, so that only changes are fetched again.

Apart from the daemon's own copies (`meshnode join --models URL`): each folder has one process that writes it.
"""


@contextlib.contextmanager
def room_for_copies(folder: str) -> Iterator[Path]:
    """Give a folder for copies: the one that was named, or one that is gone afterwards."""
    if folder:
        yield Path(folder)
        return
    with tempfile.TemporaryDirectory(prefix="meshnode-") as temporary:
        yield Path(temporary)


def fetch(url: str, copies: Path, progress: Callable[[DeployProgress], object]) -> Path:
    """Fetch the models of a URL; blocks.

    Args:
        url: `s3://`, `gs://` or `http(s)://`.
        copies: Where copies are kept.
        progress: Told how far it is.

    Returns:
        The folder or file on this machine.

    Raises:
        MeshError: saying what is wrong there, and what to do.
    """
    from meshnode.models.repository.sources import Source

    def arrived(done_bytes: int, total_bytes: int) -> None:
        progress(
            DeployProgress(
                stage="fetching",
                sent_bytes=done_bytes,
                total_bytes=total_bytes,
                text=f"{done_bytes} of {total_bytes} bytes fetched",
            )
        )

    return Source(url, copies, progress=arrived).refresh(may_be_old=False)
