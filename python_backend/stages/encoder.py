"""Triton model `<name>-encoder`: pixels of all waiting requests to image embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from python_backend import tensor_names as names
from python_backend import triton_io
from python_backend.arrays import Array
from python_backend.config import EngineConfig
from python_backend.families import load_family
from python_backend.loading import load_vision_encoder
from python_backend.stages.metrics import MetricsPublisher, encoder_metrics
from python_backend.vision_encoder import EncoderImage


class EncoderModel:
    """A `TritonPythonModel` behind Triton's dynamic batcher.

    Requests that wait while one call runs are handed over together, up to `max_batch_size`. (A thread of our
    own with decoupled responses was tried: Triton refuses an ensemble whose decoder receives one
    input from a decoupled step and another from elsewhere.)
    """

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the vision encoder."""
        model = triton_io.open_model(args)
        config = EngineConfig.from_parameters(triton_io.read_parameters(args))
        self._family = load_family(model.manifest.config, model.processor_dir)
        self._encoder = load_vision_encoder(model, self._family, config)
        self._metrics = MetricsPublisher(args["model_name"], encoder_metrics(self._encoder.cache))

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response per request; pictures of all of them share engine calls."""
        responses: list[Any] = [None] * len(requests)
        images: dict[int, list[EncoderImage]] = {}
        for i, request in enumerate(requests):
            try:
                images[i] = self._read(request)
            except Exception as error:
                responses[i] = triton_io.to_error_response(error)
        for i, result in self._encode(images).items():
            if isinstance(result, Exception):
                responses[i] = triton_io.to_error_response(result)
            else:
                responses[i] = triton_io.to_response({names.IMAGE_EMBEDS: result[None]})
        return responses

    def _read(self, request: Any) -> list[EncoderImage]:
        tensors = {
            spec.name: triton_io.read_tensor(request, spec.name)[0]
            for spec in self._family.encoder_tensors
        }
        hashes = triton_io.read_bytes(request, names.IMAGE_HASHES)
        features = self._family.split_images(tensors)
        return [EncoderImage(f, h.decode()) for f, h in zip(features, hashes, strict=True)]

    def _encode(self, images: Mapping[int, list[EncoderImage]]) -> dict[int, Array | Exception]:
        try:
            embeds = iter(self._encoder.encode([image for row in images.values() for image in row]))
        except Exception as error:
            if len(images) <= 1:
                return dict.fromkeys(images, error)
            # One bad picture must not fail the others: each request by itself.
            return {k: v for i, row in images.items() for k, v in self._encode({i: row}).items()}
        return {
            i: self._encoder.join(row, [next(embeds) for _ in row]) for i, row in images.items()
        }

    def finalize(self) -> None:
        """Free the engine."""
        self._metrics.close()
        self._encoder.close()
