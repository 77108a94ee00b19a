"""TorchServe's default handlers: what a `.mar` without code of its own names, and what others inherit.

They follow TorchServe's documented behaviour. Pictures are prepared with Pillow and NumPy, so that torchvision
is not needed: for a model in TorchScript it would only resize.
"""

from __future__ import annotations

import base64
import importlib
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from meshnode.models.workers.torchserve import (
    list_classes_from_module,
    load_label_mapping,
    map_class_to_label,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshnode.models.workers.torchserve import Context

_MEAN: Final = np.array([0.485, 0.456, 0.406], dtype=np.float32)  # of ImageNet, per channel
_DEVIATION: Final = np.array([0.229, 0.224, 0.225], dtype=np.float32)
_RESIZED: Final = 256
_CROPPED: Final = 224


class BaseHandler:
    """Loads the archive's model and runs it: preprocess, inference, postprocess."""

    def __init__(self) -> None:
        """Begin without a model."""
        self.model: Any = None
        self.mapping: Any = None
        self.device: Any = None
        self.initialized = False
        self.context: Context | None = None
        self.manifest: dict[str, Any] = {}
        self.map_location = "cpu"
        self.model_pt_path: str | None = None
        self.model_yaml_config: dict[str, Any] = {}
        self.explain = False
        self.target = 0

    def initialize(self, context: Context) -> None:
        """Load what the manifest names: TorchScript, or a class and its state dictionary."""
        properties = context.system_properties
        gpu = properties.get("gpu_id")
        if gpu is not None and torch.cuda.is_available():
            self.map_location = "cuda"
            self.device = torch.device(f"cuda:{gpu}")
        elif gpu is not None and torch.backends.mps.is_available():
            self.map_location = "mps"
            self.device = torch.device("mps")
        else:
            self.device = torch.device("cpu")
        self.context = context
        self.manifest = context.manifest
        self.model_yaml_config = context.model_yaml_config
        folder = Path(properties["model_dir"])
        model = self.manifest["model"]
        if model.get("serializedFile"):
            self.model_pt_path = str(folder / model["serializedFile"])
        if model.get("modelFile"):
            self.model = self._load_pickled_model(
                str(folder), model["modelFile"], self.model_pt_path
            )
            self.model.to(self.device)
        elif self.model_pt_path is not None:
            self.model = self._load_torchscript_model(self.model_pt_path)
        else:
            raise RuntimeError("the archive has neither serializedFile nor modelFile")
        self.model.eval()
        self.mapping = load_label_mapping(str(folder / "index_to_name.json"))
        self.initialized = True

    def _load_torchscript_model(self, model_pt_path: str) -> Any:
        return torch.jit.load(model_pt_path, map_location=self.device)

    def _load_pickled_model(
        self, model_dir: str, model_file: str, model_pt_path: str | None
    ) -> Any:
        if not (Path(model_dir) / model_file).is_file():
            raise RuntimeError(f"the archive has no {model_file}")
        module = importlib.import_module(model_file.removesuffix(".py"))
        kinds = list_classes_from_module(module, torch.nn.Module)
        if len(kinds) != 1:
            raise ValueError(f"{model_file} must define one model, not {len(kinds)}")
        model = kinds[0]()
        if model_pt_path:
            model.load_state_dict(torch.load(model_pt_path, map_location=self.device))
        return model

    def preprocess(self, data: Sequence[Any]) -> Any:
        """Return the batch as a tensor."""
        rows = [row.get("data", row.get("body")) if isinstance(row, dict) else row for row in data]
        return torch.as_tensor(rows, device=self.device)

    def inference(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        """Run the model."""
        with torch.inference_mode():
            return self.model(data.to(self.device), *args, **kwargs)

    def postprocess(self, data: Any) -> list[Any]:
        """Return one answer per request."""
        return list(data.tolist())

    def handle(self, data: list[Any], context: Context) -> list[Any]:
        """Answer a batch."""
        self.context = context
        return self.postprocess(self.inference(self.preprocess(data)))


class VisionHandler(BaseHandler):
    """Reads pictures: bytes, base64 text, or nested lists of numbers."""

    def image_processing(self, image: Any) -> Any:
        """Return a picture as a tensor [3, height, width] of 0 to 1."""
        pixels = np.asarray(image, dtype=np.float32) / 255.0
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))

    def preprocess(self, data: Sequence[Any]) -> Any:
        """Return the pictures as one tensor."""
        return torch.stack([self._picture(row) for row in data]).to(self.device)

    def _picture(self, row: Any) -> Any:
        value = row.get("data", row.get("body")) if isinstance(row, dict) else row
        if isinstance(value, dict):
            value = value.get("data", value.get("body", value.get("instances")))
        if isinstance(value, str):
            value = base64.b64decode(value)
        if isinstance(value, bytes | bytearray):
            from PIL import Image

            return self.image_processing(Image.open(io.BytesIO(value)).convert("RGB"))
        return torch.tensor(value, dtype=torch.float32)


class ImageClassifier(VisionHandler):
    """Answers the most probable classes of each picture."""

    topk = 5

    def set_max_result_classes(self, topk: int) -> None:
        """Choose how many classes are answered."""
        self.topk = topk

    def image_processing(self, image: Any) -> Any:
        """Return the middle of a picture, normalised as ImageNet's models expect."""
        return _normalised(_cropped(_resized(image, _RESIZED), _CROPPED))

    def postprocess(self, data: Any) -> list[Any]:
        """Return the classes of each picture with their probabilities."""
        probabilities = torch.nn.functional.softmax(data, dim=1)
        values, classes = torch.topk(probabilities, min(self.topk, probabilities.shape[1]), dim=1)
        return list(map_class_to_label(values.tolist(), self.mapping, classes.tolist()))


class ImageSegmenter(VisionHandler):
    """Answers the class of each pixel and its probability."""

    def image_processing(self, image: Any) -> Any:
        """Return a picture, normalised as ImageNet's models expect."""
        return _normalised(_cropped(_resized(image, _RESIZED), _CROPPED))

    def postprocess(self, data: Any) -> list[Any]:
        """Return for each pixel [class, probability]."""
        scores = data["out"] if isinstance(data, dict) else data
        probabilities = torch.nn.functional.softmax(scores, dim=1)
        values, classes = probabilities.max(dim=1)
        return list(torch.stack([classes.type(values.dtype), values], dim=3).tolist())


class ObjectDetector(VisionHandler):
    """Answers the boxes of what is in each picture, with class and score."""

    threshold = 0.5

    def preprocess(self, data: Sequence[Any]) -> Any:
        """Return the pictures, which may have different sizes."""
        return [self._picture(row).to(self.device) for row in data]

    def inference(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        """Run the model on the list of pictures."""
        with torch.inference_mode():
            found = self.model(data, *args, **kwargs)
        return found[1] if isinstance(found, tuple) else found

    def postprocess(self, data: Any) -> list[Any]:
        """Return what is more probable than the threshold, per picture."""
        answers = []
        for row in data:
            boxes, labels, scores = (row[name].tolist() for name in ("boxes", "labels", "scores"))
            answers.append(
                [
                    {str((self.mapping or {}).get(str(label), label)): box, "score": score}
                    for box, label, score in zip(boxes, labels, scores, strict=True)
                    if score >= self.threshold
                ]
            )
        return answers


def _resized(image: Any, shorter: int) -> Any:
    from PIL import Image

    width, height = image.size
    scale = shorter / min(width, height)
    size = (max(shorter, round(width * scale)), max(shorter, round(height * scale)))
    return image.resize(size, Image.Resampling.BILINEAR)


def _cropped(image: Any, side: int) -> Any:
    width, height = image.size
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _normalised(image: Any) -> Any:
    pixels = (np.asarray(image, dtype=np.float32) / 255.0 - _MEAN) / _DEVIATION
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
