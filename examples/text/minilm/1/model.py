"""all-MiniLM-L6-v2 in NumPy: words to pieces, six layers of BERT, the mean over the pieces, length 1.

The architecture is that of Devlin and others, "BERT" (2019); words are cut as there (WordPiece).
"""

import json
import math
import unicodedata
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

HEADS, LAYERS, MAX_PIECES = 12, 6, 256
LONGEST_WORD = 100


class TritonPythonModel:
    def initialize(self, _args):
        folder = Path(__file__).parent
        self.weights = read_safetensors(folder / "model.safetensors")
        lines = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
        self.vocabulary = {piece: number for number, piece in enumerate(lines)}

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        texts = pb_utils.get_input_tensor_by_name(request, "text").as_numpy()
        rows = [self.pieces(each.decode()) for each in texts.reshape(-1)]
        vectors = np.stack([self.vector(row) for row in rows]).astype(np.float32)
        counts = np.array([[len(row)] for row in rows], dtype=np.int32)
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor("embedding", vectors), pb_utils.Tensor("prompt_tokens", counts)]
        )

    def pieces(self, text):
        numbers = [n for word in words(text) for n in self.pieces_of(word)]
        begin, end = self.vocabulary["[CLS]"], self.vocabulary["[SEP]"]
        return [begin, *numbers[: MAX_PIECES - 2], end]

    def pieces_of(self, word):
        unknown = [self.vocabulary["[UNK]"]]
        if len(word) > LONGEST_WORD:
            return unknown
        found, start = [], 0
        while start < len(word):
            for end in range(len(word), start, -1):
                number = self.vocabulary.get(("##" if start else "") + word[start:end])
                if number is not None:
                    found.append(number)
                    start = end
                    break
            else:
                return unknown
        return found

    def vector(self, pieces):
        w = self.weights
        x = w["embeddings.word_embeddings.weight"][pieces]
        x = x + w["embeddings.position_embeddings.weight"][: len(pieces)]
        x = x + w["embeddings.token_type_embeddings.weight"][0]
        x = self.normal(x, "embeddings.LayerNorm")
        for layer in range(LAYERS):
            x = self.layer(x, f"encoder.layer.{layer}")
        mean = x.mean(axis=0)
        return mean / max(np.linalg.norm(mean), 1e-12)

    def layer(self, x, name):
        size = x.shape[1] // HEADS
        query, key, value = (
            self.linear(x, f"{name}.attention.self.{part}")
            .reshape(len(x), HEADS, size)
            .transpose(1, 0, 2)
            for part in ("query", "key", "value")
        )
        scores = query @ key.transpose(0, 2, 1) / math.sqrt(size)
        odds = np.exp(scores - scores.max(axis=-1, keepdims=True))
        odds /= odds.sum(axis=-1, keepdims=True)
        seen = (odds @ value).transpose(1, 0, 2).reshape(x.shape)
        seen = self.linear(seen, f"{name}.attention.output.dense")
        x = self.normal(x + seen, f"{name}.attention.output.LayerNorm")
        inner = gelu(self.linear(x, f"{name}.intermediate.dense"))
        return self.normal(
            x + self.linear(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm"
        )

    def linear(self, x, name):
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def normal(self, x, name):
        centred = x - x.mean(axis=-1, keepdims=True)
        scale = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-12)
        return centred / scale * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]


def words(text):
    """Return the words and marks of a text: lower case, without accents, Chinese letters one by one."""
    cut = []
    for char in unicodedata.normalize("NFD", text.lower()):
        kind = unicodedata.category(char)
        if char in "\0\ufffd" or kind == "Mn" or (kind in ("Cc", "Cf") and char not in "\t\n\r"):
            continue
        code = ord(char)
        is_mark = kind[0] == "P" or (
            char.isascii() and char.isprintable() and not (char.isalnum() or char == " ")
        )
        is_chinese = (
            0x4E00 <= code <= 0x9FFF
            or 0x3400 <= code <= 0x4DBF
            or 0x20000 <= code <= 0x2CEAF
            or 0xF900 <= code <= 0xFAFF
        )
        cut.append(f" {char} " if is_mark or is_chinese else char)
    return "".join(cut).split()


def gelu(x):
    """Return x times the share of the normal distribution below it, by the error function's rational fit.

    Abramowitz and Stegun, "Handbook of Mathematical Functions", 7.1.26: exact to 1.5e-7.
    """
    z = np.abs(x) / np.float32(math.sqrt(2))
    t = 1 / (1 + 0.3275911 * z)
    series = t * (
        0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429)))
    )
    erf = np.copysign(1 - series * np.exp(-z * z), x)
    return x * 0.5 * (1 + erf)


def read_safetensors(path):
    """Return the tensors of a file: the length of a JSON header, the header, the numbers."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    found = {}
    for name, about in header.items():
        if name != "__metadata__" and about["dtype"] == "F32":
            begin, end = about["data_offsets"]
            numbers = np.frombuffer(data, np.float32, (end - begin) // 4, 8 + length + begin)
            found[name] = numbers.reshape(about["shape"])
    return found
