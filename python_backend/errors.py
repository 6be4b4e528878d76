"""The error tree of the project and its one wire form.

VlmError
├── InvalidRequestError    the caller can fix it     Triton INVALID_ARG   HTTP 400
│   ├── PromptTooLongError                           code context_length_exceeded
│   └── InvalidImageError                            code invalid_image, ...
├── OverloadedError        retry later               Triton UNAVAILABLE   HTTP 429 + Retry-After
├── RequestCancelledError  the caller went away      Triton CANCELLED
├── BundleError            wrong or missing artifact (start-up and builders only)
├── ParityError            builders: outputs differ from the reference
└── EngineError            a step failed             Triton INTERNAL      HTTP 500

A Triton error carries only a code and a text, so `to_wire` appends ` [code=... param=...]` to the
sentence and `from_wire` reads it back in the proxy. People who talk to Triton directly see the
sentence first.
"""

from __future__ import annotations

import re
from typing import ClassVar


class VlmError(Exception):
    """Base of every error this project raises on purpose; the message is one sentence.

    Attributes:
        code: machine-readable reason, in OpenAI's vocabulary where it has a word.
        param: the request field at fault, as a path such as `messages[0].content[1]`.
    """

    default_code: ClassVar[str | None] = None

    def __init__(self, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.param = param


class InvalidRequestError(VlmError):
    """The request cannot be served as it is; the caller can change it."""

    default_code = "invalid_value"


class PromptTooLongError(InvalidRequestError):
    """Prompt and requested output do not fit the context the engine was built for."""

    default_code = "context_length_exceeded"


class InvalidImageError(InvalidRequestError):
    """An image cannot be decoded or is outside the limits."""

    default_code = "invalid_image"


class OverloadedError(VlmError):
    """The waiting queue is full; the same request may succeed later."""

    default_code = "rate_limit_exceeded"


class RequestCancelledError(VlmError):
    """The caller went away before the answer was complete."""

    default_code = "cancelled"


class BundleError(VlmError):
    """A built artifact is missing, incomplete, or does not match what serves it."""

    default_code = "bundle_error"


class ParityError(VlmError):
    """A built graph does not give the reference's numbers."""

    default_code = "parity_error"


class EngineError(VlmError):
    """An engine step failed; the details are in the log only."""

    default_code = "engine_error"


_WIRE_CLASSES: dict[str, type[VlmError]] = {
    cls.__name__: cls
    for cls in (
        InvalidRequestError,
        PromptTooLongError,
        InvalidImageError,
        OverloadedError,
        RequestCancelledError,
        EngineError,
    )
}
_NOISE = re.compile(r"^(\[request id: [^\]]*\] )?(in ensemble '[^']*', )?")
"""What Triton puts before the text of a step's error."""
_WIRE = re.compile(r"(?s)(.*) \[error=(\w+) code=([^\s\]]*) param=(.*)\]")


def to_wire(error: VlmError) -> str:
    """The text of a Triton error from which `from_wire` restores `error`.

    Triton ends a text at its first NUL, which a client's own words may have: it is written as an escape.
    """
    kind = type(error).__name__
    text = f"{error.message} [error={kind} code={error.code} param={error.param or ''}]"
    return text.replace("\0", "\\u0000")


def from_wire(text: str) -> VlmError | None:
    """The error that `to_wire` wrote into `text`, or None if Triton itself wrote the text."""
    match = _WIRE.search(text)
    if match is None or match[2] not in _WIRE_CLASSES:
        return None
    message = _NOISE.sub("", match[1])
    return _WIRE_CLASSES[match[2]](message, code=match[3], param=match[4] or None)
