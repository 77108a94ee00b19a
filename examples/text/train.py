"""Train the model that writes letter by letter, and write its weights into its folder.

    python -m meshnode.examples.text.train

Needs torch. It learns the questions and answers of `dialogue.txt`: a network that sees the last 32 letters and says
which comes next, after Bengio and others, "A Neural Probabilistic Language Model" (2003), with letters for words. The
model itself needs NumPy alone. Running it again on the same machine and versions writes the same numbers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

FOLDER = Path(__file__).parent
WEIGHTS = FOLDER / "models" / "letters" / "1" / "letters.npz"
CONTEXT = 32
WIDTH = 12
HIDDEN = 160
STEPS = 2500
BATCH = 256
SEED = 5
END = "\0"


def dialogue() -> list[tuple[str, str]]:
    """Return pairs of a question and its answer."""
    lines = (FOLDER / "dialogue.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split(" | ") for line in lines if line.strip()]
    return [(question, answer) for question, answer in pairs]


def samples(letters: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return contexts of letters before each letter of an answer, and those letters, as numbers."""
    place = {letter: number for number, letter in enumerate(letters)}
    contexts: list[list[int]] = []
    following: list[int] = []
    for question, answer in dialogue():
        begin = f"{question}\n\n"
        text = f"{begin}{answer}{END}"
        for end in range(len(begin), len(text)):
            before = text[max(0, end - CONTEXT) : end].rjust(CONTEXT, "\n")
            contexts.append([place[letter] for letter in before])
            following.append(place[text[end]])
    return torch.tensor(contexts), torch.tensor(following)


def train() -> None:
    """Fit the network and write its weights."""
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    letters = "".join(sorted({END, "\n", " ", *"".join(q + a for q, a in dialogue())}))
    contexts, following = samples(letters)
    embedding = torch.nn.Embedding(len(letters), WIDTH)
    hidden = torch.nn.Linear(CONTEXT * WIDTH, HIDDEN)
    output = torch.nn.Linear(HIDDEN, len(letters))
    parameters = [*embedding.parameters(), *hidden.parameters(), *output.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3)
    loss = torch.tensor(0.0)
    for _step in range(STEPS):
        some = torch.randint(len(contexts), (BATCH,))
        scores = output(torch.tanh(hidden(embedding(contexts[some]).flatten(1))))
        loss = cross_entropy(scores, following[some])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    numbers = {
        "embedding": embedding.weight,
        "hidden": hidden.weight.T,
        "hidden_bias": hidden.bias,
        "output": output.weight.T,
        "output_bias": output.bias,
    }
    half = {name: value.detach().numpy().astype(np.float16) for name, value in numbers.items()}
    np.savez(WEIGHTS, letters=np.array(letters), **half)
    print(
        f"{len(following)} letters of answers, loss {float(loss.detach()):.3f}, {WEIGHTS.stat().st_size} bytes"
    )


if __name__ == "__main__":
    train()
