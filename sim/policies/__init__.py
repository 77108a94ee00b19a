"""Other ways to choose a replica, to compare the mesh's own with.

`catalogue` lists them. Each is the published algorithm, with its source in its docstring, and sees only
what a gateway could see: its own requests in flight and how long they took, the load that replicas
report with their answers and by gossip, and probes if the algorithm sends any. The oracles see the
truth, so nothing real can be as good; they say how much there is to gain.

Everything else is the same for all: links, breakers, retries and their budget, the time given to a
first byte, the arrivals and each call's work. So what differs between two runs is who chose.
"""
