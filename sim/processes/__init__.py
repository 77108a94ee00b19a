"""Depth C: whole daemons as processes of this machine, with the delays of a network put in."""
