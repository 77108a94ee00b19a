"""Real client libraries against a running mesh of three nodes; docs/conformance.md is made from it.

A package, so that the mesh of its fixture ends with the folder's last test.
"""
