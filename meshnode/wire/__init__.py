"""What two nodes say to each other, as bytes: messages, frames and the multiplexed link.

- `codec`: typed messages as MessagePack arrays; `messages`: those of streams.
- `frames`: the layout of a frame; `reader`: cutting chunks into frames.
- `link`: many streams over one connection, made of `flow` (both halves of a stream and their
  credit), `outbox` (what leaves in which order) and `liveness` (silence, pings, round-trip time);
  `events` is what it tells, `config` its settings.

Nothing here reads a clock or a socket: bytes and `now` go in, bytes and events come out.
"""
