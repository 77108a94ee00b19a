"""Train a classifier of irises with one of four frameworks, and write what `meshnode convert` takes.

    python -m meshnode.examples.training.iris sklearn iris-models
    meshnode convert iris-models/iris.joblib --sample iris-models/iris.npz -o iris --yes

Needs `meshnode[convert]` for scikit-learn and Keras, `meshnode[torch]` for PyTorch, `meshnode[convert-jax]`
for JAX. The data are the 150 irises that come with scikit-learn, each with four lengths in centimetres
and one of three species. `iris.npz` beside the model has all of them under the name `input`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

SEED = 2
HIDDEN_UNITS = 16
SPECIES = 3
STEPS = 300


def irises() -> tuple[Any, Any]:
    """Return lengths, float32 of shape [150, 4], and species, int64 of shape [150]."""
    from sklearn.datasets import load_iris

    lengths, species = load_iris(return_X_y=True)
    return lengths.astype(np.float32), species.astype(np.int64)


def train_sklearn(folder: Path) -> None:
    """Write `iris.joblib`: a scaler and a perceptron."""
    import joblib
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(
        StandardScaler(), MLPClassifier((HIDDEN_UNITS,), max_iter=1500, random_state=SEED)
    )
    joblib.dump(model.fit(*irises()), folder / "iris.joblib")


def train_keras(folder: Path) -> None:
    """Write `iris.keras`: two dense layers."""
    import keras

    keras.utils.set_random_seed(SEED)
    model = keras.Sequential([
        keras.layers.Input((4,), name="input"),
        keras.layers.Dense(HIDDEN_UNITS, activation="relu"),
        keras.layers.Dense(SPECIES, activation="softmax", name="probabilities"),
    ])  # fmt: skip
    model.compile(keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy")
    model.fit(*irises(), epochs=20, batch_size=50, verbose=0)
    model.save(folder / "iris.keras")


def net() -> Any:
    """Return an untrained PyTorch module; `iris.py:net` names it for `meshnode convert`."""
    from torch import nn

    return nn.Sequential(
        nn.Linear(4, HIDDEN_UNITS), nn.ReLU(), nn.Linear(HIDDEN_UNITS, SPECIES), nn.Softmax(-1)
    )


def train_torch(folder: Path) -> None:
    """Write `iris.pth`, the weights of `net`, and `module.pth`, the whole module as a pickle."""
    import torch

    torch.manual_seed(SEED)
    module = net()
    lengths, species = map(torch.from_numpy, irises())
    optimizer = torch.optim.Adam(module.parameters(), 0.02)
    for _ in range(STEPS):
        optimizer.zero_grad()
        torch.nn.functional.nll_loss(module(lengths).log(), species).backward()
        optimizer.step()
    torch.save(module.state_dict(), folder / "iris.pth")
    torch.save(module, folder / "module.pth")


def predict(parameters: Any, rows: Any) -> Any:
    """Return probabilities, with JAX; `iris.py:predict` names it for `meshnode convert`."""
    import jax
    import jax.numpy as jnp

    hidden = jnp.tanh(rows @ parameters["hidden"]["weights"] + parameters["hidden"]["biases"])
    return jax.nn.softmax(hidden @ parameters["out"]["weights"] + parameters["out"]["biases"])


def train_jax(folder: Path) -> None:
    """Write `parameters.npz`, the parameters of `predict`, nested by `/`."""
    import jax
    import jax.numpy as jnp

    lengths, species = irises()
    drawing = np.random.default_rng(SEED)

    def layer(inputs: int, units: int) -> dict[str, Any]:
        weights = drawing.normal(0, 0.5, (inputs, units)).astype(np.float32)
        return {"weights": weights, "biases": np.zeros(units, np.float32)}

    parameters = {"hidden": layer(4, HIDDEN_UNITS), "out": layer(HIDDEN_UNITS, SPECIES)}

    def loss(parameters: Any) -> Any:
        chosen = predict(parameters, lengths)[np.arange(len(species)), species]
        return -jnp.mean(jnp.log(chosen))

    gradient = jax.jit(jax.grad(loss))
    for _ in range(STEPS):
        parameters = jax.tree.map(
            lambda value, slope: value - 0.1 * slope, parameters, gradient(parameters)
        )
    flat: dict[str, Any] = {
        f"{place}/{name}": np.asarray(array)
        for place, arrays in parameters.items()
        for name, array in arrays.items()
    }
    np.savez(folder / "parameters.npz", **flat)


def main(frameworks: str, folder: str) -> None:
    """Train with a framework, or several separated by commas; write the models and the data."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    train = {
        "sklearn": train_sklearn,
        "keras": train_keras,
        "torch": train_torch,
        "jax": train_jax,
    }
    for framework in frameworks.split(","):
        train[framework](path)
    np.savez(path / "iris.npz", input=irises()[0])


if __name__ == "__main__":
    main(*sys.argv[1:])
