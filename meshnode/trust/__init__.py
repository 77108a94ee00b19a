"""Who a node is, who may be in a mesh, and how two nodes prove it to each other.

- `identity`: a node's Ed25519 key.
- `records`: signed statements (admissions, invite grants) and their encoding.
- `chain`: admission chains down from the mesh's root: founding, admitting, verifying.
- `invite`: the `mesh1...` line that lets a new device join.
- `admission`: what a witness checks before it admits a device.
- `statements`: evictions and changes of roles, which every node has in the desired state.
- `standing`: which chains still count by what was stated, and with which role.
- `overview`: members and revoked keys as rows for people.
- `roster`: the members that this node knows, each with its verified chain.
- `hello`: the handshake that opens every link, for members and joiners alike.
- `datagrams`: authenticated encryption of UDP between members that have had a link.

All of it is pure: random bytes, boot numbers and wall time are parameters.
"""
