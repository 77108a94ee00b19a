"""Jobs: inferences whose callers do not wait.

- `job`: what was asked, how it fares, and which of two histories of one job counts.
- `ranking`: which nodes keep a job, and which of them runs it.
- `book`: one node's jobs: what to write, send, run, tell and drop (a core without I/O).
- `messages`: what nodes say to each other about jobs.
- `webhooks`: how the end of a job is told to its caller's own server, signed.
- `store`: jobs on disk (SQLite).

How it works as a whole is told in docs/jobs.md.
"""
