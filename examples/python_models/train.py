"""Train both models and write the weights into their folders below models/.

    python -m meshnode.examples.python_models.train

Needs the development dependencies (scikit-learn), whose bundled data it uses: 178 wines of three growers
with 13 measurements each, and 1,797 scans of handwritten digits. A quarter of each is held out by a fixed
seed. The models themselves need NumPy alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits, load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

FOLDER = Path(__file__).parent
SEED = 3


def fit(data: Any, labels: Any, regularisation: float) -> tuple[dict[str, Any], float, Any, Any]:
    """Train a linear classifier; return its numbers, its accuracy, and the held-out part."""
    x, held_out, y, truth = train_test_split(
        data, labels, test_size=0.25, random_state=SEED, stratify=labels
    )
    model = make_pipeline(StandardScaler(), LogisticRegression(C=regularisation, max_iter=2000))
    model.fit(x, y)
    scaler, regression = model[0], model[1]
    numbers = {
        "mean": scaler.mean_,
        "scale": scaler.scale_,
        "coefficients": regression.coef_,
        "intercepts": regression.intercept_,
    }
    rounded = {name: np.round(value, 6).tolist() for name, value in numbers.items()}
    return rounded, float(model.score(held_out, truth)), held_out, truth


def write(path: Path, value: object) -> None:
    """Write JSON that a person can compare."""
    path.write_text(json.dumps(value, separators=(",", ":")) + "\n", encoding="utf-8")


def main() -> None:
    """Train, write, and say how good they are."""
    wine = load_wine()
    numbers, accuracy, held_out, truth = fit(wine.data, wine.target, 1.0)
    names = [name.replace("/", "_") for name in wine.feature_names]
    write(
        FOLDER / "models" / "wine" / "weights.json",
        {"features": names, "classes": ["Alba", "Barolo", "Canelli"], **numbers},
    )
    print(f"wine: {accuracy:.1%} of {len(truth)} held-out wines are right")
    first = dict(zip(names, held_out[0].tolist(), strict=True))
    write(FOLDER / "wine_sample.json", {"request": first, "class": int(truth[0])})

    digits = load_digits()
    numbers, accuracy, held_out, truth = fit(digits.data, digits.target, 0.05)
    write(FOLDER / "models" / "digits_reader" / "weights.json", numbers)
    print(f"digits: {accuracy:.1%} of {len(truth)} held-out digits are right")
    write(
        FOLDER / "digits_sample.json",
        {"request": {"pixels": held_out[0].astype(int).tolist()}, "class": int(truth[0])},
    )


if __name__ == "__main__":
    main()
