"""What executes a model: one module per runtime, behind the interface of `base`."""
