"""Linear models and perceptrons of scikit-learn as dense layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from meshnode.errors import ModelError


@dataclass(frozen=True, slots=True)
class Layer:
    """`activation(rows @ weights + biases)`.

    Attributes:
        weights: [inputs, units].
        biases: [units].
        activation: Keras's name of it; None for none.
    """

    weights: Any
    biases: Any
    activation: str | None


_ACTIVATIONS: Final = {
    "identity": None, "logistic": "sigmoid", "tanh": "tanh", "relu": "relu", "softmax": "softmax",
}  # fmt: skip
_LINEAR: Final = (
    "LinearRegression", "Ridge", "RidgeCV", "Lasso", "LassoCV", "ElasticNet", "ElasticNetCV",
    "RidgeClassifier", "LinearSVC", "LinearSVR", "SGDRegressor", "BayesianRidge", "HuberRegressor",
)  # fmt: skip
_PERCEPTRONS: Final = ("MLPClassifier", "MLPRegressor")


def layers_of(model: Any) -> list[Layer]:
    """Return a fitted model as layers; scalers before it are folded into the first.

    Raises:
        ModelError: if it, or a step of its pipeline, is no such model.
    """
    steps = [step for _, step in model.steps] if hasattr(model, "steps") else [model]
    layers = _last(steps[-1])
    for scaler in reversed(steps[:-1]):
        if scaler is None or scaler == "passthrough":
            continue
        factor, shift = _scaling(scaler, layers[0].weights.shape[0])
        first = layers[0]
        layers[0] = Layer(
            first.weights * factor[:, None], first.biases + shift @ first.weights, first.activation
        )
    return layers


def _scaling(scaler: Any, features: int) -> tuple[Any, Any]:
    """Return factor and shift: scaled = rows * factor + shift."""
    ones, zeros = np.ones(features), np.zeros(features)
    name = type(scaler).__name__
    if name == "StandardScaler":
        factor = ones if scaler.scale_ is None else 1 / scaler.scale_
        return factor, zeros if scaler.mean_ is None else -scaler.mean_ * factor
    if name == "MinMaxScaler" and not scaler.clip:
        return scaler.scale_, scaler.min_
    if name == "MaxAbsScaler":
        return 1 / scaler.scale_, zeros
    if name == "RobustScaler":
        factor = ones if scaler.scale_ is None else 1 / scaler.scale_
        return factor, zeros if scaler.center_ is None else -scaler.center_ * factor
    raise ModelError(
        f"a pipeline with a {name} can become ONNX, but neither TorchScript nor TensorFlow Lite: "
        "add --to onnx"
    )


def _last(model: Any) -> list[Layer]:
    name = type(model).__name__
    if name in _PERCEPTRONS:
        activations = [model.activation] * (len(model.coefs_) - 1) + [model.out_activation_]
        return [
            Layer(weights, biases, _ACTIVATIONS[activation])
            for weights, biases, activation in zip(
                model.coefs_, model.intercepts_, activations, strict=True
            )
        ]
    if name in ("LogisticRegression", "LogisticRegressionCV"):
        weights, biases = _coefficients(model)
        return [Layer(weights, biases, "softmax" if weights.shape[1] > 1 else "sigmoid")]
    if name in _LINEAR:
        return [Layer(*_coefficients(model), None)]
    raise ModelError(
        f"a {name} can become ONNX, but neither TorchScript nor TensorFlow Lite, which have no such "
        "operators: add --to onnx"
    )


def _coefficients(model: Any) -> tuple[Any, Any]:
    weights = np.atleast_2d(model.coef_).T
    return weights, np.broadcast_to(np.atleast_1d(model.intercept_), (weights.shape[1],)).copy()
