"""One table from errors to HTTP statuses, and OpenAI's error object.

The body is OpenAI's: `{"error": {"message", "type", "param", "code"}}`, with a string or null as
code, because client libraries compare `error.code` with strings.
"""

from __future__ import annotations

import json
import logging
import math
from typing import Any, ClassVar

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from python_backend.errors import (
    InvalidRequestError,
    OverloadedError,
    RequestCancelledError,
    VlmError,
)

_log = logging.getLogger(__name__)

SERVER_ERROR_MESSAGE = "The server had an error while processing your request."


class ModelNotFoundError(InvalidRequestError):
    """The request names a model that this server does not serve."""

    default_code: ClassVar[str] = "model_not_found"

    def __init__(self, model: str) -> None:
        super().__init__(f"The model `{model}` does not exist or you do not have access to it.")


class ResponseNotFoundError(InvalidRequestError):
    """There is no stored response with this id that the caller has made."""

    default_code: ClassVar[str] = "response_not_found"


class ImageNotFoundError(InvalidRequestError):
    """The request names an image that the caller has not sent, or that is no longer kept.

    Args:
        param: path of the name in the request.
    """

    default_code: ClassVar[str] = "image_not_found"

    def __init__(self, param: str) -> None:
        super().__init__(
            f"There is no image with the uuid at '{param}' of this API key, or no longer; send the image "
            "again, with its 'image_url' beside the 'uuid'.",
            param=param,
        )


class RequestTooLargeError(InvalidRequestError):
    """The request body is larger than the server reads."""

    default_code: ClassVar[str] = "request_too_large"


class RequestTimeoutError(InvalidRequestError):
    """The request body did not arrive in time."""

    default_code: ClassVar[str] = "request_timeout"


class UnsupportedEncodingError(InvalidRequestError):
    """The request body is compressed; a small body could unpack to a huge one."""

    default_code: ClassVar[str] = "unsupported_content_encoding"


class MissingApiKeyError(VlmError):
    """The request has no API key, and the path needs one."""

    def __init__(self) -> None:
        super().__init__(
            "You didn't provide an API key. You need to provide your API key in an Authorization "
            "header using Bearer auth (i.e. Authorization: Bearer YOUR_KEY)."
        )


class InvalidApiKeyError(VlmError):
    """The API key of the request is not one of this server's."""

    default_code: ClassVar[str] = "invalid_api_key"

    def __init__(self, key: str) -> None:
        # Enough to recognize one's own key; a short one may be a password, typed by mistake.
        shown = f"{key[:5]}***{key[-2:]}" if len(key) >= 16 else "***"
        super().__init__(f"Incorrect API key provided: {shown}.")


class RateLimitError(VlmError):
    """An API key has used up a limit.

    Args:
        message: which limit.
        retry_after_s: when the request would be admitted.
    """

    default_code: ClassVar[str] = "rate_limit_exceeded"

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RequestRateError(RateLimitError):
    """Too many requests in a minute."""


class TokenRateError(RateLimitError):
    """Too many tokens in a minute."""


class ServiceUnavailableError(VlmError):
    """Triton cannot be reached or is not ready; a later request may succeed."""

    def __init__(self) -> None:
        super().__init__("The model server is not available at the moment; try again later.")


# Error class -> HTTP status and OpenAI's error type. The nearest base class decides; what is not
# here is a server error whose details are for the log only.
_STATUS: dict[type[BaseException], tuple[int, str]] = {
    InvalidRequestError: (400, "invalid_request_error"),
    MissingApiKeyError: (401, "invalid_request_error"),
    InvalidApiKeyError: (401, "invalid_request_error"),
    ModelNotFoundError: (404, "invalid_request_error"),
    ResponseNotFoundError: (404, "invalid_request_error"),
    ImageNotFoundError: (404, "invalid_request_error"),
    RequestTimeoutError: (408, "invalid_request_error"),
    RequestTooLargeError: (413, "invalid_request_error"),
    UnsupportedEncodingError: (415, "invalid_request_error"),
    OverloadedError: (429, "requests"),
    RequestRateError: (429, "requests"),
    TokenRateError: (429, "tokens"),
    RequestCancelledError: (499, "invalid_request_error"),
    ServiceUnavailableError: (503, "server_error"),
}
_SERVER_ERROR = (500, "server_error")
# All codes of `InvalidRequestError`, whoever raises it.
INVALID_REQUEST_CODES = (
    *("invalid_json", "invalid_type", "invalid_value", "missing_required_parameter"),
    "invalid_function_parameters",
    *("unknown_parameter", "unsupported_parameter", "unsupported_value"),
    *("context_length_exceeded", "rate_limit_exceeded"),
    *("invalid_image_url", "failed_to_download_image", "image_file_not_found"),
    *("invalid_base64_image", "empty_image_file", "invalid_image_format", "image_file_too_large"),
    *("invalid_image", "image_parse_error", "image_too_small", "image_too_large"),
    *("invalid_video_url", "failed_to_download_video", "video_file_not_found"),
    *("invalid_base64_video", "empty_video_file", "invalid_video_format", "video_file_too_large"),
    *("video_parse_error", "video_too_large"),
)
# Of errors that the routing itself raises.
_HTTP_ERROR_CODES = {404: "unknown_url", 405: "method_not_supported"}


def status_of(error: BaseException) -> int:
    """The HTTP status that answers `error`."""
    return _status_and_type(error)[0]


def kinds_of(status: int) -> tuple[list[str], list[str | None]]:
    """The types that errors with an HTTP status have, and their codes."""
    if status == 400:
        return ["invalid_request_error"], [*INVALID_REQUEST_CODES]
    kinds = {cls: type_ for cls, (cls_status, type_) in _STATUS.items() if cls_status == status}
    if not kinds:
        return [_SERVER_ERROR[1]], [None]
    codes = {getattr(cls, "default_code", None) for cls in kinds}
    if status in _HTTP_ERROR_CODES:
        codes.add(_HTTP_ERROR_CODES[status])
    return sorted(set(kinds.values())), sorted(codes, key=str)


def error_body(error: BaseException) -> dict[str, Any]:
    """OpenAI's error object for `error`."""
    status, type_ = _status_and_type(error)
    if status == _SERVER_ERROR[0] or not isinstance(error, VlmError):
        return _body(SERVER_ERROR_MESSAGE, type_)
    return _body(error.message, type_, error.param, error.code)


def error_response(error: BaseException, retry_after_s: int) -> Response:
    """The HTTP answer for `error`; 429 and 503 tell when to come back."""
    status = status_of(error)
    headers: dict[str, str] = {}
    if isinstance(error, RateLimitError):
        headers["retry-after"] = str(math.ceil(error.retry_after_s))
        headers["retry-after-ms"] = str(math.ceil(error.retry_after_s * 1000))
    elif status in (429, 503):
        headers["retry-after"] = str(retry_after_s)
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    if status == 408:
        # The rest of the body may never come. After 413 the connection stays open: closing it while
        # the client still sends would reset it, and the client would not see the answer.
        headers["connection"] = "close"
    return _json_response(error_body(error), status, headers)


def install_error_handlers(app: FastAPI, retry_after_s: int) -> None:
    """Answer every error of the routes with OpenAI's error object."""

    async def on_vlm_error(request: Request, error: Exception) -> Response:
        if status_of(error) == _SERVER_ERROR[0]:
            _log.error("request %s failed: %s", request.state.record.request_id, error)
        return error_response(error, retry_after_s)

    async def on_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = error.detail
        if error.status_code == 404:
            message = f"Unknown request URL: {request.method} {request.url.path}."
        elif error.status_code == 405:
            message = f"{request.method} is not supported on {request.url.path}."
        code = _HTTP_ERROR_CODES.get(error.status_code)
        body = _body(message, "invalid_request_error", code=code)
        return _json_response(body, error.status_code, dict(error.headers or {}))

    async def on_unexpected_error(request: Request, error: Exception) -> Response:
        # Starlette sends this answer from outside the middleware that adds the id to all others.
        response = error_response(error, retry_after_s)
        response.headers["x-request-id"] = request.state.record.request_id
        return response

    app.add_exception_handler(VlmError, on_vlm_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(Exception, on_unexpected_error)


def _status_and_type(error: BaseException) -> tuple[int, str]:
    return next((_STATUS[cls] for cls in type(error).__mro__ if cls in _STATUS), _SERVER_ERROR)


def _body(
    message: str, type_: str, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    return {"error": {"message": message, "type": type_, "param": param, "code": code}}


def _json_response(body: dict[str, Any], status: int, headers: dict[str, str]) -> Response:
    content = json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
    return Response(content, status, headers, media_type="application/json")
