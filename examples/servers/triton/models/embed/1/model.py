"""Triton's Python backend: TEXT [batch, 1] -> EMBEDDING [batch, hidden], float32, of length 1.

    tritonserver --model-repository examples/servers/triton/models

Triton joins requests into batches; here all requests of a call become one batch of the encoder.
"""

import json

import numpy as np
import torch
import triton_python_backend_utils as pb_utils
from transformers import AutoTokenizer

import sparseinfer as si


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        folder = parameters["folder"]["string_value"]
        torch.set_num_threads(int(parameters["threads"]["string_value"]))
        self.model = si.load(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def execute(self, requests: list) -> list:
        texts = [
            pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy().reshape(-1) for request in requests
        ]
        try:
            embeddings = self.embed([text.decode() for group in texts for text in group])
        except UnicodeDecodeError:
            return [self.answer(group) for group in texts]
        ends = np.cumsum([len(group) for group in texts])[:-1]
        return [response(part) for part in np.split(embeddings, ends)]

    def answer(self, group: np.ndarray) -> "pb_utils.InferenceResponse":
        """One request by itself: a wrong text must not fail those that were batched with it."""
        try:
            return response(self.embed([text.decode() for text in group]))
        except UnicodeDecodeError as error:
            return pb_utils.InferenceResponse(
                [], error=pb_utils.TritonError(f"TEXT: expected UTF-8, got {error}")
            )

    def embed(self, texts: list[str]) -> np.ndarray:
        batch = self.tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
        with torch.inference_mode():
            hidden = self.model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1)
            means = (hidden * mask).sum(1) / mask.sum(1)
            return torch.nn.functional.normalize(means).numpy()


def response(embeddings: np.ndarray) -> "pb_utils.InferenceResponse":
    return pb_utils.InferenceResponse([pb_utils.Tensor("EMBEDDING", embeddings)])
