"""Finds vehicles in a picture from above: boxes, labels and confidences, or the picture with the boxes drawn."""

import base64
import io
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
from boxes import decode
from PIL import Image, ImageDraw, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field

FOLDER = Path(__file__).parent
LABELS = ("car", "truck", "bus")
COLOURS = ((230, 60, 50), (250, 170, 30), (60, 130, 240))
SIZE = 96
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MOST_PIXELS = 25_000_000
MADE = {"image/png": "png", "image/jpeg": "jpeg", "image/webp": "webp", "image/*": "png"}


class Wrong(Exception):
    """A request that cannot be carried out; the answer says why."""

    def __init__(self, detail, status_code=400):
        super().__init__(detail)
        self.detail = detail
        self.status_code = status_code


class Request(BaseModel):
    """What the model is asked."""

    model_config = ConfigDict(strict=True)

    image: str = Field(
        description="The picture, as base64; or send its file as it is, or in a form.",
        json_schema_extra={"contentEncoding": "base64"},
    )
    threshold: float = Field(0.5, gt=0, le=1, description="How sure a finding must be to be told.")


class Detection(BaseModel):
    """One vehicle."""

    label: str
    confidence: float
    box: list[float] = Field(description="left, top, right, bottom, in pixels")


class Response(BaseModel):
    """What is found."""

    width: int
    height: int
    count: int
    detections: list[Detection]


class Detector:
    """A small network that looks at a picture as a grid of cells."""

    def __init__(self):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            FOLDER / "weights.onnx", options, providers=["CPUExecutionProvider"]
        )

    def predict(self, request, header=None):
        """Answer `{"image": base64, "threshold"?: 0.5}`: JSON, or the path of a picture where one is asked for."""
        if header is not None and header not in MADE:
            raise Wrong(f"the answer is JSON, or a picture: {', '.join(MADE)}", 406)
        picture = opened(request["image"])
        found = self.find(picture, request["threshold"])
        if header is not None:
            return drawn(picture, found, MADE[header])
        return {
            "width": picture.width,
            "height": picture.height,
            "count": len(found),
            "detections": [
                {
                    "label": LABELS[each.label],
                    "confidence": round(each.confidence, 4),
                    "box": [round(edge, 1) for edge in each.box],
                }
                for each in found
            ],
        }

    def find(self, picture, threshold):
        """Return what is found; a picture that is no square is looked at as if it were one."""
        pixels = np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.BOX))
        (grid,) = self.session.run(None, {"pixels": pixels[np.newaxis]})
        return decode(grid[0], picture.size, threshold)


def opened(encoded):
    """Return the picture of a request."""
    too_large = Wrong(f"the picture has more than {MOST_PIXELS} pixels", 413)
    try:
        data = base64.b64decode(encoded, validate=True)
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
        if picture.width * picture.height > MOST_PIXELS:
            raise too_large
        return picture.convert("RGB")
    except Image.DecompressionBombError:
        raise too_large from None
    except UnidentifiedImageError:
        raise Wrong(f"the file is no picture ({', '.join(FORMATS)})") from None
    except (ValueError, OSError, SyntaxError) as error:
        raise Wrong(f"the picture is damaged: {error}") from None


def drawn(picture, found, kind):
    """Draw boxes and labels; return the path of the picture that this makes."""
    draw = ImageDraw.Draw(picture)
    wide = max(1, round(max(picture.size) / 200))
    for each in found:
        left, top, right, bottom = each.box
        colour = COLOURS[each.label]
        draw.rectangle((left, top, right, bottom), outline=colour, width=wide)
        text = f"{LABELS[each.label]} {each.confidence:.0%}"
        _, _, length, height = draw.textbbox((0, 0), text)
        above = max(0, top - height - 2)
        draw.rectangle((left, above, left + length + 3, above + height + 2), fill=colour)
        draw.text((left + 2, above), text, fill="white")
    path = Path(tempfile.mkdtemp()) / f"found.{kind}"
    picture.save(path)
    return str(path)
