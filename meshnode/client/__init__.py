"""The client's side of a daemon: where its data lies, its control channel, and requests to it.

Nothing here imports the daemon, a web framework or NumPy: a command that only asks a question
starts in a fraction of a second.
"""
