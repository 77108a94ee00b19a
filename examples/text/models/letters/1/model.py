"""Writes letter by letter: a small network over the last letters, which `examples/text/train.py` trained."""

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

MAX_LETTERS = 4096


class TritonPythonModel:
    def initialize(self, _args):
        weights = np.load(Path(__file__).parent / "letters.npz")
        self.letters = str(weights["letters"])
        self.place = {letter: number for number, letter in enumerate(self.letters)}
        self.embedding, self.hidden, self.hidden_bias, self.output, self.output_bias = (
            weights[name].astype(np.float32)
            for name in ("embedding", "hidden", "hidden_bias", "output", "output_bias")
        )
        self.context = len(self.hidden) // self.embedding.shape[1]

    def execute(self, requests):
        for request in requests:
            self.answer(request)

    def answer(self, request):
        sender = request.get_response_sender()
        prompt = pb_utils.get_input_tensor_by_name(request, "prompt").as_numpy().flat[0].decode()
        asked = json.loads(request.parameters() or "{}")
        wanted = int(asked.get("max_tokens", 200))
        temperature = float(asked.get("temperature", 0.7))
        random = np.random.default_rng(asked.get("seed"))
        # What another node wrote of this answer before it was lost: each letter was one part.
        written = json.loads(asked.get("meshnode_delivered", "{}")).get("text", "")
        if asked.get("meshnode_delivered_parts", 0) > len(written):  # the ending came, too
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            return
        if temperature > 0:
            random.random(len(written))  # as many draws as those letters took
        text, reason = prompt + written, "length"
        for count in range(len(written) + 1, min(wanted, MAX_LETTERS) + 1):
            if request.is_cancelled():
                break
            letter = self.letters[self.choose(text, temperature, random)]
            if letter == "\0":  # the end of what it has to say
                reason = "stop"
                break
            text += letter
            told = {"prompt_tokens": len(prompt), "completion_tokens": count}
            tensor = pb_utils.Tensor("text", np.array([letter.encode()], dtype=np.object_))
            sender.send(pb_utils.InferenceResponse([tensor], parameters=told))
        ending = pb_utils.Tensor("text", np.array([b""], dtype=np.object_))
        sender.send(
            pb_utils.InferenceResponse([ending], parameters={"finish_reason": reason}),
            flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL,
        )

    def choose(self, text, temperature, random):
        recent = text[-self.context :].rjust(self.context, "\n")
        numbers = [self.place.get(letter, self.place[" "]) for letter in recent]
        x = np.tanh(self.embedding[numbers].reshape(-1) @ self.hidden + self.hidden_bias)
        scores = x @ self.output + self.output_bias
        if temperature <= 0:
            return int(scores.argmax())
        odds = np.exp((scores - scores.max()) / temperature)
        return int(random.choice(len(odds), p=odds / odds.sum()))
