"""Models that are their author's code, each in processes of its own.

`meshnode.models.workers.child` is what such a process runs: it shuts itself in (`isolation`), opens the
model through the adaptor of its spelling (`adaptor`) and answers what it is asked. `process` starts it,
`host` asks it from the event loop and starts it again when it is gone; `supervision` decides when it has
to go. Requests and answers are short messages over a socket (`protocol`); tensors lie in memory that both
processes map (`memory`, shared out by `arena`).
"""
