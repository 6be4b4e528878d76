"""Triton model `<name>-encoder`: pixels of all waiting requests to image embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from python_backend import tensor_names as names
from python_backend import triton_io
from python_backend.config import EngineConfig
from python_backend.encoder_loop import EncoderLoop
from python_backend.families import load_family
from python_backend.loading import load_vision_encoder
from python_backend.vision_encoder import EncoderImage


class EncoderModel:
    """A decoupled `TritonPythonModel`: one response per request, from the encoder's thread."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the vision encoder."""
        model = triton_io.open_model(args)
        config = EngineConfig.from_parameters(triton_io.read_parameters(args))
        self._family = load_family(model.manifest.config, model.processor_dir)
        self._loop = EncoderLoop(load_vision_encoder(model, self._family, config))

    def execute(self, requests: Sequence[Any]) -> None:
        """Hand the requests to the encoder's thread."""
        for request in requests:
            self._submit(request)

    def _submit(self, request: Any) -> None:
        sender = request.get_response_sender()

        def respond(result: np.ndarray | Exception) -> None:
            if isinstance(result, Exception):
                sender.send(triton_io.to_error_response(result), flags=triton_io.FINAL)
            else:
                response = triton_io.to_response({names.IMAGE_EMBEDS: result})
                sender.send(response, flags=triton_io.FINAL)

        try:
            tensors = {
                # A copy: the request's memory is Triton's, and it ends with this call.
                spec.name: triton_io.read_tensor(request, spec.name).copy()
                for spec in self._family.encoder_tensors
            }
            hashes = triton_io.read_bytes(request, names.IMAGE_HASHES)
            images = [
                EncoderImage(features, image_hash.decode())
                for features, image_hash in zip(
                    self._family.split_images(tensors), hashes, strict=True
                )
            ]
        except Exception as error:
            respond(error)
        else:
            self._loop.submit(images, respond)

    def finalize(self) -> None:
        """Finish what was handed in."""
        self._loop.close()
