"""Depth B: whole daemons on a loop of virtual time, with a network in memory."""
