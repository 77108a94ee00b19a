"""A classifier of handwritten digits: `digits.onnx`, `expected.json`, and pictures in `images/`.

All were written by `train.py`; read them through `importlib.resources.files`.
"""
