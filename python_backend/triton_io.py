"""Everything this project knows of Triton's Python backend API: tensors, errors and responses."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from python_backend import tensor_names as names
from python_backend.arrays import Array
from python_backend.errors import (
    BundleError,
    EngineError,
    InvalidRequestError,
    OverloadedError,
    RequestCancelledError,
    VlmError,
    to_wire,
)
from python_backend.manifest import ModelFolder
from python_backend.request import RequestOutput

_LOG = logging.getLogger(__name__)

ALLOW_UNVERIFIED = "allow_unverified"


def read_parameters(args: Mapping[str, str]) -> dict[str, str]:
    """The `parameters` of the model's config.pbtxt."""
    config = json.loads(args["model_config"])
    return {k: v["string_value"] for k, v in config.get("parameters", {}).items()}


def open_model(args: Mapping[str, str]) -> ModelFolder:
    """The model folder a stage belongs to: its sister in the repository, named by `model`.

    Raises:
        TritonModelException: there is none; the model does not become ready and the log says why.
    """
    parameters = read_parameters(args)
    try:
        if "model" not in parameters:
            raise BundleError("config.pbtxt has no parameter `model`: build the model again")
        folder = Path(args["model_repository"]).parent / parameters["model"]
        return ModelFolder.open(
            folder, allow_unverified=parameters.get(ALLOW_UNVERIFIED, "false") == "true"
        )
    except BundleError as error:
        raise pb_utils.TritonModelException(error.message) from error


def read_tensor(request: Any, name: str) -> np.ndarray:
    """An input as numpy; bytes tensors have dtype object."""
    tensor = _input(request, name)
    if not tensor.is_cpu():
        raise InvalidRequestError(
            f"input {name} is in a GPU's memory; send it in the host's", param=name
        )
    array: np.ndarray = tensor.as_numpy()
    return array


def take_tensor(request: Any, name: str) -> Array:
    """A copy of an input, in whose memory it is: NumPy, or CuPy for a GPU's.

    Triton gives the GPU's only to models whose config.pbtxt says so.
    """
    tensor = _input(request, name)
    if tensor.is_cpu():
        return tensor.as_numpy().copy()
    cupy = import_module("cupy")
    array = cupy.from_dlpack(tensor).copy()
    # The copy is only started, and Triton's memory ends with `execute`.
    cupy.cuda.get_current_stream().synchronize()
    return array


def _input(request: Any, name: str) -> Any:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        raise InvalidRequestError(f"input {name} is missing", param=name)
    return tensor


def tensor_names(request: Any) -> set[str]:
    """Which of its optional inputs a request has."""
    return {tensor.name() for tensor in request.inputs()}


def read_bytes(request: Any, name: str) -> list[bytes]:
    """A bytes input as a list."""
    return [bytes(item) for item in read_tensor(request, name).ravel()]


def read_json(request: Any, name: str) -> Any:
    """A bytes input of one element, parsed.

    Raises:
        InvalidRequestError: it is not one JSON text.
    """
    items = read_bytes(request, name)
    try:
        (text,) = items
        return json.loads(text)
    except ValueError:
        raise InvalidRequestError(f"input {name} must be one JSON text", param=name) from None


def to_response(tensors: Mapping[str, Array]) -> Any:
    """A response of these outputs, which stay in a GPU's memory; strings go in as object arrays."""
    return pb_utils.InferenceResponse([_output(name, array) for name, array in tensors.items()])


def _output(name: str, array: Array) -> Any:
    if isinstance(array, np.ndarray):
        return pb_utils.Tensor(name, np.ascontiguousarray(array))
    return pb_utils.Tensor.from_dlpack(name, array)  # waits for what computes it


def to_bytes_array(items: Iterable[str]) -> np.ndarray:
    """Texts as a bytes tensor."""
    return np.array([item.encode() for item in items], dtype=object)


def to_error_response(error: Exception) -> Any:
    """A response that carries an error; what is not a `VlmError` is logged and not shown."""
    if not isinstance(error, VlmError):
        _LOG.error("a stage failed", exc_info=error)
        error = EngineError("a stage failed while it worked on the request")
    return pb_utils.InferenceResponse(
        error=pb_utils.TritonError(to_wire(error), _triton_code(error))
    )


def _triton_code(error: VlmError) -> Any:
    if isinstance(error, InvalidRequestError):
        return pb_utils.TritonError.INVALID_ARG
    if isinstance(error, OverloadedError):
        return pb_utils.TritonError.UNAVAILABLE
    if isinstance(error, RequestCancelledError):
        return pb_utils.TritonError.CANCELLED
    return pb_utils.TritonError.INTERNAL


FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
"""Flag of the one response that ends a decoupled request, on every path."""


_OUTPUTS_PER_CANCEL_CHECK = 16
"""A look at the cancellation flag is a round trip to the server, and only clients of the decoder itself
need it: Triton does not pass the cancellation of an ensemble on."""


class TritonSink:
    """Sends the outputs of one request through its response sender; see `engine_loop.Sink`."""

    def __init__(self, request: Any) -> None:
        self._sender = request.get_response_sender()
        self._num_sent = 0

    def send(self, output: RequestOutput) -> bool:
        """Send an output; False if the client has gone."""
        tensors = {
            names.TEXT: to_bytes_array([output.text]),
            names.DETAILS: to_bytes_array([_details(output)]),
        }
        self._sender.send(to_response(tensors), flags=FINAL if output.is_last else 0)
        self._num_sent += 1
        if output.is_last or self._num_sent % _OUTPUTS_PER_CANCEL_CHECK:
            return True
        return not self._sender.is_cancelled()

    def fail(self, error: Exception) -> None:
        """End the response with an error."""
        self._sender.send(to_error_response(error), flags=FINAL)


def _details(output: RequestOutput) -> str:
    details: dict[str, Any] = {"index": output.index, "token_ids": list(output.token_ids)}
    if output.reasoning:
        details["reasoning"] = output.reasoning
    if output.logprobs is not None:
        details["logprobs"] = list(output.logprobs)
    if output.prompt_token_ids is not None:
        details["prompt_token_ids"] = list(output.prompt_token_ids)
    if output.prompt_logprobs is not None:
        details["prompt_logprobs"] = list(output.prompt_logprobs)
    if output.finish_reason is not None:
        details["finish_reason"] = output.finish_reason
        details["matched_stop"] = output.matched_stop
    if output.usage is not None:
        details["usage"] = {
            "prompt_tokens": output.usage.prompt_tokens,
            "completion_tokens": output.usage.completion_tokens,
            "image_tokens": output.usage.image_tokens,
            "video_tokens": output.usage.video_tokens,
            "cached_tokens": output.usage.cached_tokens,
            "reasoning_tokens": output.usage.reasoning_tokens,
            "draft_tokens": output.usage.draft_tokens,
            "accepted_draft_tokens": output.usage.accepted_draft_tokens,
        }
    if output.timing is not None:
        details["timing"] = dataclasses.asdict(output.timing)
    return json.dumps(details, ensure_ascii=False)
