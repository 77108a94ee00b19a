"""Which of three growers a wine comes from, by 13 measurements of it."""

import json
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent


class Pipeline:
    """A linear classifier in NumPy."""

    def __init__(self):
        weights = json.loads((FOLDER / "weights.json").read_text())
        self.features = weights["features"]
        self.classes = weights["classes"]
        self.mean, self.scale, self.coefficients, self.intercepts = (
            np.array(weights[name]) for name in ("mean", "scale", "coefficients", "intercepts")
        )

    def compile(self):
        """Run once before the model is ready, as a model for an accelerator would compile here."""
        self(dict.fromkeys(self.features, 0.0))

    def __call__(self, inputs):
        """Return the grower and how sure the model is."""
        values = np.array([inputs[name] for name in self.features])
        scores = self.coefficients @ ((values - self.mean) / self.scale) + self.intercepts
        odds = np.exp(scores - scores.max())
        probabilities = odds / odds.sum()
        best = int(probabilities.argmax())
        return {"grower": self.classes[best], "probability": float(probabilities[best])}
