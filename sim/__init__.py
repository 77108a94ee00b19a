"""The simulator: the same cores as the daemon's, in a virtual world that one seed decides."""
