"""Draws what a short sentence says: as JSON, as a PNG, or as a stream of ever finer pictures."""

import asyncio
import base64
import io
import random
import tempfile
from pathlib import Path

from painter import Painter
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

SMALLEST, LARGEST = 16, 512


class Wrong(Exception):
    """A request that cannot be carried out; the answer says why."""

    def __init__(self, detail, status_code=400):
        super().__init__(detail)
        self.detail = detail
        self.status_code = status_code


class Request(BaseModel):
    """What the model is asked."""

    model_config = ConfigDict(strict=True)

    prompt: str = Field(
        min_length=1, max_length=500, examples=["a red circle on a blue background"]
    )
    size: int = Field(128, ge=SMALLEST, le=LARGEST, description="Width and height, in pixels.")
    seed: int | float | str = Field(0, description="Moves and turns what is drawn a little.")
    stream: bool = Field(False, description="Send ever finer pictures, as they are made.")


class Response(BaseModel):
    """A picture."""

    width: int
    height: int
    media_type: str
    image: str = Field(description="The picture, as base64.")


class TextToImage:
    """A network that gives each point of a picture its colour, steered by the words."""

    def __init__(self):
        self.painter = Painter()

    def predict(self, request, header=None):
        """Answer `{"prompt": text, "size"?: 128, "seed"?: 0}`: JSON with base64, or the path of a PNG."""
        if header not in (None, "image/png", "image/*"):
            raise Wrong("the answer is JSON, or a picture: image/png", 406)
        thought, size = self.understood(request)
        data = png(self.painter.paint(thought, size))
        if header is not None:
            path = Path(tempfile.mkdtemp()) / "picture.png"
            path.write_bytes(data)
            return str(path)
        return told(data, size)

    async def async_predict(self, request):
        """Yield each picture on the way, each twice as fine as the one before, and how far it is."""
        thought, size = self.understood(request)
        sizes = [size]
        while sizes[0] > SMALLEST:
            sizes.insert(0, max(SMALLEST, sizes[0] // 2))
        for number, each in enumerate(sizes, 1):
            picture = await asyncio.to_thread(self.painter.paint, thought, each)
            yield {"progress": round(number / len(sizes), 3), **told(png(picture), each)}

    def understood(self, request):
        """Return what the network makes of a request, and the size of its picture."""
        prompt = request["prompt"]
        if not self.painter.known(prompt):
            raise Wrong(f"no word of {prompt[:60]!r} is known; try: a small yellow star over night")
        rng = random.Random(str(request["seed"]))
        jitter = [rng.uniform(-1, 1) for _ in range(3)]
        return self.painter.thought(prompt, jitter), request["size"]


def png(pixels):
    """Return a picture as the bytes of a PNG."""
    made = io.BytesIO()
    Image.fromarray(pixels).save(made, "PNG")
    return made.getvalue()


def told(data, size):
    """Return a picture as JSON has it."""
    picture = base64.b64encode(data).decode()
    return {"width": size, "height": size, "media_type": "image/png", "image": picture}
