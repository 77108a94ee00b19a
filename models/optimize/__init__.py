"""Smaller and faster forms of a model: quantised, pruned, with a simpler graph.

- `planning`: which steps can be done to what, and when the result is good enough (pure).
- `pruning`: which weights go, and how fast (pure).
- `optimizing`: the flow of `meshnode optimize`; `steps`, `onnx_steps`, `torch_steps`: what runs in its
  child process.
"""
