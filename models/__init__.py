"""What a model is, and how it is found, published, stored, loaded and run.

- `manifest`, `config`: a version's tensors and files; Triton's configuration text (pure).
- `repository`: what lies on disk; `publish`: from there to a manifest and blobs; `store`: blobs.
- `runtimes`: what executes a model; `server`: the versions that this node serves, with `slots`
  (the queue before worker threads), `measure` (how long runs take) and `warmup`.
- `tensors`, `images`: NumPy arrays and pictures as tensors.
"""
