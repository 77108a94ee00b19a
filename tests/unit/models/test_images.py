from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from meshnode.errors import InvalidRequest, TooLarge
from meshnode.limits import MAX_IMAGE_PIXELS
from meshnode.models.images import image_to_tensor, is_image
from meshnode.models.manifest import TensorSpec
from meshnode.models.tensors import to_numpy
from meshnode.types import DataType


def png(picture: Image.Image, **options: object) -> bytes:
    target = io.BytesIO()
    picture.save(target, "PNG", **options)
    return target.getvalue()


def spec(*shape: int, datatype: DataType = DataType.FP32) -> TensorSpec:
    return TensorSpec("image", datatype, shape)


COLOURS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8)
RGB = png(Image.fromarray(COLOURS))


def test_grayscale_is_scaled_from_0_to_1() -> None:
    data = png(Image.fromarray(np.array([[0, 51], [102, 255]], np.uint8)))
    tensor = image_to_tensor(data, spec(-1, 2, 2))
    assert (tensor.name, tensor.datatype, tensor.shape) == ("image", DataType.FP32, (1, 2, 2))
    np.testing.assert_allclose(to_numpy(tensor), [[[0, 0.2], [0.4, 1]]], rtol=1e-6)


@pytest.mark.parametrize("datatype", [DataType.FP16, DataType.FP64])
def test_other_floats_are_scaled_too(datatype: DataType) -> None:
    tensor = image_to_tensor(RGB, spec(1, 3, 2, 2, datatype=datatype))
    assert tensor.datatype is datatype
    assert to_numpy(tensor).max() == 1


def test_uint8_keeps_its_values_in_planes_first_or_last() -> None:
    last = to_numpy(image_to_tensor(RGB, spec(-1, 2, 2, 3, datatype=DataType.UINT8)))
    assert (last[0] == COLOURS).all()
    first = to_numpy(image_to_tensor(RGB, spec(-1, 3, 2, 2, datatype=DataType.UINT8)))
    assert (first[0] == COLOURS.transpose(2, 0, 1)).all()
    assert image_to_tensor(RGB, spec(-1, 1, 2, 2)).shape == (1, 1, 2, 2)
    assert image_to_tensor(RGB, spec(-1, 2, 2, 1)).shape == (1, 2, 2, 1)


def test_free_sizes_take_the_picture_as_it_is() -> None:
    assert image_to_tensor(RGB, spec(-1, 3, -1, -1)).shape == (1, 3, 2, 2)
    assert image_to_tensor(RGB, spec(-1, -1, 4)).shape == (1, 2, 4)


def test_an_enlarged_picture_is_shrunk_back_exactly() -> None:
    pixels = np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8)
    large = Image.fromarray(pixels).resize((128, 128), Image.Resampling.NEAREST)
    tensor = image_to_tensor(png(large), spec(-1, 8, 8, datatype=DataType.UINT8))
    assert (to_numpy(tensor)[0] == pixels).all()


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    data = png(Image.fromarray(np.array([[0, 32768], [65535, 256]], np.uint16)))
    tensor = image_to_tensor(data, spec(-1, 2, 2, datatype=DataType.UINT8))
    assert to_numpy(tensor)[0].tolist() == [[0, 128], [255, 1]]


def test_a_photo_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to view
    data = png(Image.fromarray(COLOURS[:, :1]), exif=exif)
    assert image_to_tensor(data, spec(-1, 3, -1, -1)).shape == (1, 3, 1, 2)


@pytest.mark.parametrize(
    "unsuitable",
    [
        spec(-1, 64),
        spec(-1, 8, 8, datatype=DataType.INT64),
        spec(-1, 2, 8, 8),
        spec(4, 8, 8),
        spec(),
    ],
)
def test_an_input_that_is_no_picture_says_what_one_is(unsuitable: TensorSpec) -> None:
    assert not is_image(unsuitable)
    with pytest.raises(InvalidRequest, match=r"takes no picture: expected floats or UINT8"):
        image_to_tensor(RGB, unsuitable)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is no picture"),
        (b"GIF is not this", "is no picture"),
        (RGB[:40], "is (no picture|damaged)"),
        (png(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)))[:900],
         "is damaged"),
    ],
)  # fmt: skip
def test_data_that_is_no_picture_is_refused(data: bytes, reason: str) -> None:
    assert is_image(spec(-1, 8, 8))
    with pytest.raises(InvalidRequest, match=reason):
        image_to_tensor(data, spec(-1, 8, 8))


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims this size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [8_000, 11_000, 60_000])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(side: int) -> None:
    """Over our own limit, over Pillow's warning, over Pillow's limit."""
    assert side * side > MAX_IMAGE_PIXELS
    with pytest.raises(TooLarge):
        image_to_tensor(bomb(side, side), spec(-1, 8, 8))
