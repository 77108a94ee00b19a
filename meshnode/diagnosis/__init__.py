"""Why two nodes do not meet: from what was tried to findings, each with what to do. Pure.

`meshnode doctor` tries things: it dials addresses, says a hello that comes to nothing (a *trial*), sends
datagrams both ways, asks the other node what time it is, and listens for mDNS. What it saw comes here as
observations; what goes out are checks:

| result | means |
|---|---|
| `ok` | it was tried, and works |
| `note` | it does not work, or is not as usual, and the nodes meet all the same |
| `fault` | this keeps the nodes apart, or costs them something that they should have |

An address that fails is a fault only where no other way to the node was found: devices have addresses
that lead to them from some places only. Each check has a `Code`, which docs/troubleshooting.md explains.
"""
