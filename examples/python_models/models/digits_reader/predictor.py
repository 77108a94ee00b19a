"""Reads a handwritten digit of 8x8 pixels: as JSON, as a stream of guesses, or as a picture."""

import asyncio
import json
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

FOLDER = Path(__file__).parent


class DigitsReader:
    """A linear classifier in NumPy."""

    def __init__(self):
        weights = json.loads((FOLDER / "weights.json").read_text())
        self.mean, self.scale, self.coefficients, self.intercepts = (
            np.array(weights[name]) for name in ("mean", "scale", "coefficients", "intercepts")
        )

    def predict(self, request, header=None):
        """Return the digit, or the path of a picture of it where a picture is asked for."""
        pixels = np.array(request["pixels"], dtype=float)
        if header == "image/png":
            return self._picture(pixels)
        probabilities = self._probabilities(pixels)
        return {"digit": int(probabilities.argmax()), "probability": float(probabilities.max())}

    async def async_predict(self, request):
        """Yield the three best guesses, the best first."""
        probabilities = self._probabilities(np.array(request["pixels"], dtype=float))
        for digit in probabilities.argsort()[::-1][:3]:
            guess = {"digit": int(digit), "probability": round(float(probabilities[digit]), 4)}
            yield f"data: {json.dumps(guess)}\n\n"
            await asyncio.sleep(0)

    def _probabilities(self, pixels):
        scale = np.where(self.scale == 0, 1, self.scale)
        scores = self.coefficients @ ((pixels - self.mean) / scale) + self.intercepts
        odds = np.exp(scores - scores.max())
        return odds / odds.sum()

    def _picture(self, pixels):
        shades = (255 - pixels.reshape(8, 8) * (255 / 16)).clip(0, 255).astype(np.uint8)
        picture = Image.fromarray(shades).resize((128, 128), Image.Resampling.NEAREST)
        path = Path(tempfile.mkdtemp()) / "digit.png"
        picture.save(path)
        return str(path)
