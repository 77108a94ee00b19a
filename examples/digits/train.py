"""Train the digits classifier and write the files of this folder.

    python -m meshnode.examples.digits.train

Needs the development dependencies (scikit-learn, onnx). scikit-learn's digits are 1,797 scans of
8x8 pixels with values 0 to 16, from the test set of the UCI ML repository's "Optical Recognition of
Handwritten Digits". A quarter of them is held out by a fixed seed; the pictures in `images/` are the
first held-out sample of each digit, whatever the model makes of it. Running it again on the same
machine and versions writes the same bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped] # it has no types

FOLDER = Path(__file__).parent
SEED = 2
HIDDEN_UNITS = 96
SCALE = 16  # so that people can see them; a box filter by the same factor gives the scan back
OPSET = 17  # old enough for every ONNX Runtime that meshnode supports
IR_VERSION = 8


def split() -> tuple[Any, Any, Any, Any, Any]:
    """Return training pictures, held-out pictures, both labels, and the held-out indices.

    Pictures are float32 of shape [n, 8, 8] in 0 (paper) to 1 (ink), quantised as in the PNG files.
    """
    pictures, labels = load_digits(return_X_y=True)
    pixels = np.round(pictures * (255 / 16)).astype(np.uint8)
    scaled = (pixels.astype(np.float32) / 255).reshape(-1, 8, 8)
    train, held_out = train_test_split(
        np.arange(len(labels)), test_size=0.25, random_state=SEED, stratify=labels
    )
    held_out.sort()
    return scaled[train], scaled[held_out], labels[train], labels[held_out], held_out


def fit(pictures: Any, labels: Any) -> MLPClassifier:
    """Train a perceptron with one hidden layer."""
    model = MLPClassifier((HIDDEN_UNITS,), alpha=1e-2, max_iter=400, random_state=SEED)
    with threadpool_limits(1):  # sums in one order: the same weights every time
        return model.fit(pictures.reshape(-1, 64), labels)


def to_onnx(model: MLPClassifier) -> bytes:
    """Return the trained model as an ONNX file: image -> label, probabilities."""
    (hidden_weights, output_weights), (hidden_bias, output_bias) = model.coefs_, model.intercepts_
    parameters = {
        "hidden_weights": hidden_weights,
        "hidden_bias": hidden_bias,
        "output_weights": output_weights,
        "output_bias": output_bias,
    }
    nodes = [
        helper.make_node("Flatten", ["image"], ["pixels"], axis=1),
        helper.make_node("Gemm", ["pixels", "hidden_weights", "hidden_bias"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("Gemm", ["active", "output_weights", "output_bias"], ["scores"]),
        helper.make_node("ArgMax", ["scores"], ["label"], axis=1, keepdims=0),
        helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 8, 8])],
        [
            helper.make_tensor_value_info("label", TensorProto.INT64, ["batch"]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 10]),
        ],
        [
            numpy_helper.from_array(values.astype(np.float32), name)
            for name, values in parameters.items()
        ],
    )
    exported = helper.make_model(
        graph,
        producer_name="meshnode.examples.digits",
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    onnx.checker.check_model(exported, full_check=True)
    serialized: bytes = exported.SerializeToString(deterministic=True)
    return serialized


def predict(file: bytes, pictures: Any) -> tuple[Any, Any]:
    """Run an ONNX file and return labels and probabilities."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    label, probabilities = session.run(["label", "probabilities"], {"image": pictures})
    return label, probabilities


def write_pictures(pictures: Any, labels: Any, indices: Any) -> dict[str, int]:
    """Write the first held-out sample of each digit as PNG; return file name -> true label."""
    folder = FOLDER / "images"
    folder.mkdir(exist_ok=True)
    for stale in folder.glob("*.png"):
        stale.unlink()
    expected: dict[str, int] = {}
    for digit in range(10):
        position = int(np.flatnonzero(labels == digit)[0])
        name = f"{digit}-{indices[position]}.png"
        pixels = np.round(pictures[position] * 255).astype(np.uint8)
        large = Image.fromarray(pixels).resize((8 * SCALE, 8 * SCALE), Image.Resampling.NEAREST)
        large.save(folder / name, optimize=True)
        expected[f"images/{name}"] = digit
    return expected


def main() -> None:
    """Train, export, check the export, and write the files."""
    train, held_out, train_labels, labels, indices = split()
    model = fit(train, train_labels)
    exported = to_onnx(model)
    predicted, probabilities = predict(exported, held_out)
    flat = held_out.reshape(-1, 64)
    if not np.array_equal(predicted, model.predict(flat)):
        raise SystemExit("the exported model's labels differ from scikit-learn's")
    difference = float(np.abs(probabilities - model.predict_proba(flat)).max())
    if difference > 1e-4:
        raise SystemExit(f"the exported model's probabilities differ by {difference}")
    (FOLDER / "digits.onnx").write_bytes(exported)
    expected = write_pictures(held_out, labels, indices)
    (FOLDER / "expected.json").write_text(json.dumps(expected, indent=2) + "\n", encoding="utf-8")
    right = int((predicted == labels).sum())
    print(f"accuracy on {len(labels)} held-out digits: {right / len(labels):.2%} ({right} right)")
    print(
        f"digits.onnx: {len(exported):,} bytes; largest difference of a probability to scikit-learn: {difference:.1e}"
    )


if __name__ == "__main__":
    main()
