"""What a model is, and how it is found, published, stored, moved, loaded and executed.

- `manifest`, `execution`, `provenance`, `variants`: what a version is, how it is executed, where it is from (pure).
- `repository`: what lies in folders and buckets, Triton's configuration, and how it becomes a manifest.
- `artifacts`: files on disk and on their way between nodes.
- `serving`: the versions that this node serves: queues, batches, instances, cache.
- `runtimes`: what executes a model; `workers`: the processes of models that are code.
- `http_calls`, `routes`: models that take documents or HTTP; `tensors`, `images`: NumPy arrays and pictures.
- `convert`, `optimize`: from what training frameworks save to files that are served, and to smaller ones.
"""
