"""meshnode: a peer-to-peer edge inference mesh.

`meshnode join` on each device makes them one mesh; every node answers HTTP for all of it.
The layers of this package, and what each may import, are in docs/ARCHITECTURE.md.
"""

__version__ = "0.1.0"
