"""Triton model `<name>-decoder`: tokens and image embeddings to text, with in-flight batching."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from python_backend import tensor_names as names
from python_backend import triton_io
from python_backend.config import EngineConfig
from python_backend.engine_loop import EngineLoop
from python_backend.errors import InvalidRequestError
from python_backend.families.base import PreparedPrompt, PromptImage
from python_backend.loading import load_engine, load_grammars
from python_backend.request import GenerationRequest
from python_backend.stages.metrics import MetricsPublisher, decoder_metrics
from python_backend.vision_encoder import no_image_embeds

_LOG = logging.getLogger(__name__)


class DecoderModel:
    """A decoupled `TritonPythonModel` that hosts the engine."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the decoder and start its threads."""
        model = triton_io.open_model(args)
        self._name = args["model_name"]
        self._manifest = model.manifest
        config = EngineConfig.from_parameters(triton_io.read_parameters(args))
        self._num_anonymous = 0
        self._grammars = load_grammars(model)
        engine = load_engine(model, config)
        self._token_text = engine.token_text
        self._loop = EngineLoop(engine, on_broken=self._unload)
        self._metrics = MetricsPublisher(self._name, decoder_metrics(engine))

    def execute(self, requests: Sequence[Any]) -> None:
        """Hand the requests to the engine and return at once."""
        for request in requests:
            given = triton_io.tensor_names(request)
            if names.CANCEL in given:
                self._cancel(request)
            elif given == {names.PROMPT_TOKEN_IDS}:
                self._detokenize(request)
            else:
                self._submit(request)

    def _submit(self, request: Any) -> None:
        sink = triton_io.TritonSink(request)
        try:
            generation = self._read(request)
        except Exception as error:
            sink.fail(error)
        else:
            self._loop.submit(generation, sink)

    def _read(self, request: Any) -> GenerationRequest:
        params = self._manifest.read_sampling(triton_io.read_json(request, names.SAMPLING))
        # Copies: the request's memory is Triton's, and it ends with `execute`.
        prompt = PreparedPrompt(
            triton_io.read_tensor(request, names.PROMPT_TOKEN_IDS).copy(),
            triton_io.read_tensor(request, names.IMAGE_INDEX).copy(),
            triton_io.read_tensor(request, names.POSITION_IDS).copy(),
            self._read_cross_range(request),
            _read_images(request),
        )
        if self._manifest.sees_images:
            # The encoder's batch axis of one ends here.
            embeds = triton_io.take_tensor(request, names.IMAGE_EMBEDS)[0]
        else:
            embeds = no_image_embeds(self._manifest.decoder.spec)
        request_id = request.request_id()
        if not request_id:
            self._num_anonymous += 1
            request_id = f"anonymous-{self._num_anonymous}"
        constraint = self._grammars.compile(params.grammar)
        return GenerationRequest(request_id, prompt, embeds, params, constraint)

    def _read_cross_range(self, request: Any) -> np.ndarray | None:
        if self._manifest.cross_attention is None:
            return None
        return triton_io.read_tensor(request, names.CROSS_RANGE).copy()

    def _cancel(self, request: Any) -> None:
        sender = request.get_response_sender()
        try:
            (item,) = triton_io.read_bytes(request, names.CANCEL)
            request_id = item.decode()
        except ValueError:
            error = InvalidRequestError("cancel must be one request id", param=names.CANCEL)
            sender.send(triton_io.to_error_response(error), flags=triton_io.FINAL)
            return

        def respond(found: bool) -> None:
            tensors = {
                names.TEXT: triton_io.to_bytes_array([""]),
                names.DETAILS: triton_io.to_bytes_array([json.dumps({"cancelled": found})]),
            }
            sender.send(triton_io.to_response(tensors), flags=triton_io.FINAL)

        self._loop.abort(request_id, respond)

    def _detokenize(self, request: Any) -> None:
        try:
            token_ids = triton_io.read_tensor(request, names.PROMPT_TOKEN_IDS).tolist()
            tensors = {
                names.TEXT: triton_io.to_bytes_array([self._token_text.decode(token_ids)]),
                names.DETAILS: triton_io.to_bytes_array(["{}"]),
            }
            response = triton_io.to_response(tensors)
        except Exception as error:
            response = triton_io.to_error_response(error)
        request.get_response_sender().send(response, flags=triton_io.FINAL)

    def _unload(self) -> None:
        """Take the model out of service: its readiness tells the proxy and the operator."""
        _LOG.error("unloading %s: the engine fails at every step", self._name)
        pb_utils.unload_model(self._name)

    def finalize(self) -> None:
        """Stop admitting and finish what runs."""
        self._loop.close()
        self._metrics.close()


def _read_images(request: Any) -> list[PromptImage]:
    hashes = triton_io.read_bytes(request, names.IMAGE_HASHES)
    lengths = triton_io.read_tensor(request, names.IMAGE_LENGTHS)
    if lengths.dtype != "int64" or lengths.shape != (len(hashes),):
        raise InvalidRequestError(
            f"{names.IMAGE_LENGTHS} is {lengths.dtype} {list(lengths.shape)}; {len(hashes)} hashes need "
            f"int64 [{len(hashes)}]",
            param=names.IMAGE_LENGTHS,
        )
    pairs = zip(hashes, lengths.tolist(), strict=True)
    return [
        PromptImage(image_hash.decode("latin-1"), num_tokens) for image_hash, num_tokens in pairs
    ]
