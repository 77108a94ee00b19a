"""TorchScript files and exported programs, made on the fly. Importing this imports PyTorch."""

from __future__ import annotations

import io
import warnings
from typing import Any

import torch


class Identity(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class AddAndSubtract(torch.nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"sum": a + b, "difference": a - b}


class Quotient(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.div(x, x, rounding_mode="floor")


class Words(torch.nn.Module):
    def forward(self, x: list[str]) -> list[str]:
        return x


class Weighty(torch.nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(1, count), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.w


class Scores(torch.nn.Module):
    """Four features to three scores and their sum, with a bias from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)

    def forward(
        self, features: torch.Tensor, bias: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        scores = self.layer(features) + bias
        return scores, scores.sum(1)


class Pictures(torch.nn.Module):
    """A small convolutional classifier of pictures of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
            torch.nn.Flatten(), torch.nn.Linear(8, 5),
        )  # fmt: skip

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.layers(picture)
        return scores


class Tokens(torch.nn.Module):
    """Embeds numbers of words and averages them."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(100, 6)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        averaged: torch.Tensor = self.embedding(tokens).mean(1)
        return averaged


class Picky(torch.nn.Module):
    """Takes a size that nobody would guess."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(17, 31, 7)


def scripted(module: Any) -> bytes:
    """The module as a TorchScript file."""
    out = io.BytesIO()
    with warnings.catch_warnings():  # TorchScript is deprecated, and is what people have
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(module.eval()), out)
    return out.getvalue()


def exported(module: Any, example: tuple[Any, ...], open_sizes: Any = None) -> bytes:
    """The module as an exported program."""
    out = io.BytesIO()
    program = torch.export.export(module.eval(), example, dynamic_shapes=open_sizes)
    torch.export.save(program, out)
    return out.getvalue()
