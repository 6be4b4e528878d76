"""From the status of a Triton call to an error of this project."""

from __future__ import annotations

import logging

import grpc

from openai_frontend.errors import ServiceUnavailableError
from python_backend.errors import (
    EngineError,
    InvalidRequestError,
    RequestCancelledError,
    VlmError,
    from_wire,
)

_log = logging.getLogger(__name__)
# What Triton says of a model that does not take requests, in a stream's text.
_NOT_READY = ("unknown model", "is not ready", "is unloading", "is not available")
# NOT_FOUND: the model was listed a moment ago, so it is being reloaded or has just failed.
_NOT_AVAILABLE = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.NOT_FOUND,
)


def to_vlm_error(code: grpc.StatusCode | None, text: str | None) -> VlmError:
    """The error to answer with.

    Args:
        code: gRPC status; None if the stream only carried a text.
        text: what Triton says. Shown to the client only if one of this project's stages wrote it;
            Triton's own words go to the log.
    """
    text = text or ""
    error = from_wire(text)
    if isinstance(error, RequestCancelledError):
        # The client is still there, so it was the server that gave up: it shuts down.
        return ServiceUnavailableError()
    if error is not None:
        return error
    _log.warning("Triton answered %s: %s", code, text)
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return InvalidRequestError("The model server refused the request as invalid.")
    if code in _NOT_AVAILABLE or any(words in text for words in _NOT_READY):
        return ServiceUnavailableError()
    return EngineError(f"Triton answered {code}: {text}")
