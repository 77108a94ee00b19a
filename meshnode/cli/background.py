"""The daemon of `meshnode join --detach`: `python -m meshnode.cli.background DATA_DIR`.

Its parent hands it everything through a pipe, so that an invite shows neither in `ps` nor in a
file. It speaks to its parent's terminal until the node is a member, and then lets go of it; its log
goes on in the data folder. The argument only tells people which node a process is.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from meshnode.cli.output import print_error
from meshnode.errors import MeshError

if TYPE_CHECKING:
    from meshnode.options import JoinOptions

log = logging.getLogger("meshnode")


def main() -> int:
    """Be the daemon; return its exit code."""
    options: JoinOptions = pickle.load(sys.stdin.buffer)  # noqa: S301 - our own parent's pipe
    _read_nothing()
    from meshnode.daemon import run
    from meshnode.daemon.terminal import flush, let_go

    os.chdir(Path(options.data_dir).anchor)  # no file system is kept from being unmounted
    try:
        return run(options, let_go)
    except MeshError as error:
        with contextlib.suppress(OSError):  # nobody is there any more
            print_error(error)
        return error.exit_code
    except Exception:
        log.exception("the daemon ended by a defect; please report it")  # nobody sees its stderr
        raise
    finally:
        flush()


def _read_nothing() -> None:
    """Leave the parent's pipe."""
    nowhere = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nowhere, 0)
    os.close(nowhere)


if __name__ == "__main__":
    sys.exit(main())
