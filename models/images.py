"""Pictures as model inputs: decode, bring to the model's size and layout, scale.

Layouts are recognised by the input's shape: `[-1, H, W]` is grayscale; `[-1, C, H, W]` and
`[-1, H, W, C]` with C of 1 or 3 are planes first and last (where both fit, planes first). Floats
run from 0 (black) to 1 (white), UINT8 from 0 to 255. H and W of -1 take the picture as it is.
"""

from __future__ import annotations

import io
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from meshnode.errors import InvalidRequest, TooLarge
from meshnode.limits import MAX_IMAGE_PIXELS
from meshnode.models.tensors import DTYPES, from_numpy
from meshnode.types import DataType, Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meshnode.models.manifest import TensorSpec

# Pillow warns of large pictures; the limit here is ours, and lower. Said once: threads share the warnings' filters.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_FLOATS = (DataType.FP16, DataType.FP32, DataType.FP64)
_CHANNELS = (1, 3)


@dataclass(frozen=True, slots=True)
class _Layout:
    """How a picture lies in a tensor; sizes of -1 are free."""

    height: int
    width: int
    channels: int
    channel_axis: int | None


def is_image(spec: TensorSpec) -> bool:
    """Whether an input takes pictures."""
    return _layout(spec) is not None


def image_to_tensor(data: bytes, spec: TensorSpec) -> Tensor:
    """Decode a picture into a batch of one for a model's input.

    Args:
        data: PNG, JPEG, WebP, GIF (its first frame), BMP, TIFF or PPM.
        spec: The input.

    Raises:
        InvalidRequest: if the input takes no pictures, or the data is none.
        TooLarge: if the picture has more than `MAX_IMAGE_PIXELS`.
    """
    layout = _layout(spec)
    if layout is None:
        raise InvalidRequest(
            f"input {spec.name!r} ({spec.datatype} {list(spec.shape)}) takes no picture: expected "
            "floats or UINT8 of shape [-1, H, W], [-1, C, H, W] or [-1, H, W, C] with C of 1 or 3"
        )
    picture = _resized(_decoded(data, layout), layout)
    array = np.asarray(picture)
    if layout.channel_axis is not None:
        array = array.reshape(picture.height, picture.width, layout.channels)
    if layout.channel_axis == 1:
        array = array.transpose(2, 0, 1)
    if spec.datatype is not DataType.UINT8:
        array = (array.astype(np.float32) / 255).astype(DTYPES[spec.datatype])
    return from_numpy(spec.name, np.ascontiguousarray(array[np.newaxis]))


def _layout(spec: TensorSpec) -> _Layout | None:
    shape = spec.shape
    if spec.datatype not in (*_FLOATS, DataType.UINT8) or not shape or shape[0] not in (-1, 1):
        return None
    if len(shape) == 3:
        return _Layout(shape[1], shape[2], 1, None)
    if len(shape) == 4 and shape[1] in _CHANNELS:
        return _Layout(shape[2], shape[3], shape[1], 1)
    if len(shape) == 4 and shape[3] in _CHANNELS:
        return _Layout(shape[1], shape[2], shape[3], 3)
    return None


def pixels_of(data: bytes) -> int:
    """Return how many pixels a picture says that it has; nothing is decoded.

    Raises:
        InvalidRequest: if it is none.
        TooLarge: if it has more than `MAX_IMAGE_PIXELS`.
    """
    with _opened(data) as picture:
        return picture.width * picture.height


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """Open a picture within the limit; what is wrong with it is told in our terms, also while it is decoded."""
    try:
        picture = Image.open(io.BytesIO(data), formats=_FORMATS)
        if picture.width * picture.height > MAX_IMAGE_PIXELS:
            raise TooLarge(
                f"the picture has {picture.width} x {picture.height} pixels; at most {MAX_IMAGE_PIXELS}"
            )
        yield picture
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLarge(f"the picture is too large: {error}") from None
    except UnidentifiedImageError:
        raise InvalidRequest(f"the file is no picture ({', '.join(_FORMATS)})") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise InvalidRequest(f"the picture is damaged: {error}") from None


def _decoded(data: bytes, layout: _Layout) -> Image.Image:
    """Return the picture, upright, in 8-bit grayscale or RGB."""
    channels = layout.channels
    with _opened(data) as picture:
        if layout.height > 0 and layout.width > 0:
            # JPEG can be decoded at a fraction of its size; it is still twice the model's or more.
            side = 2 * max(layout.height, layout.width)
            picture.draft(None, (side, side))
        upright = ImageOps.exif_transpose(picture)
    if upright.mode.startswith("I;16"):  # 16-bit grayscale; Pillow would clip it, not scale it
        upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
    return upright.convert("L" if channels == 1 else "RGB")


def _resized(picture: Image.Image, layout: _Layout) -> Image.Image:
    """Return the picture in the model's size: averaged when it shrinks, interpolated when not."""
    size = (
        picture.width if layout.width == -1 else layout.width,
        picture.height if layout.height == -1 else layout.height,
    )
    if size == picture.size:
        return picture
    shrinks = size[0] <= picture.width and size[1] <= picture.height
    return picture.resize(size, Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR)
