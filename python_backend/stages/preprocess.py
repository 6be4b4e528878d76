"""Triton model `<name>-preprocess`: messages and image files to token ids, positions and pixels."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from python_backend import tensor_names as names
from python_backend import triton_io


class PreprocessModel:
    """A `TritonPythonModel`; each instance prepares one request at a time."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load tokenizer and image processor."""
        # transformers imports torch where it is installed: 190 MB that this process has no use for.
        sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
        from python_backend.preprocess import Preprocessor

        self._preprocessor = Preprocessor(triton_io.open_model(args))

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response per request; a bad request gets its own error."""
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        try:
            prompt = triton_io.read_json(request, names.PROMPT)
            images = triton_io.read_bytes(request, names.IMAGES)
            prepared = self._preprocessor.prepare(prompt, images)
            tensors = {
                names.PROMPT_TOKEN_IDS: prepared.prompt.token_ids,
                names.IMAGE_INDEX: prepared.prompt.image_index,
                names.POSITION_IDS: prepared.prompt.position_ids,
                names.IMAGE_LENGTHS: np.array([i.num_tokens for i in prepared.images], np.int64),
            }
            if prepared.prompt.cross_range is not None:
                tensors[names.CROSS_RANGE] = prepared.prompt.cross_range
            # The encoder batches requests, so what goes there has a batch axis of one.
            features = self._preprocessor.family.join_images(prepared.images)
            features[names.IMAGE_HASHES] = triton_io.to_bytes_array(prepared.image_hashes)
            tensors |= {name: array[None] for name, array in features.items()}
        except Exception as error:
            return triton_io.to_error_response(error)
        return triton_io.to_response(tensors)
