"""The OpenAPI document of what is served: every route with its bodies, answers and errors.

Bodies are parsed by hand, so FastAPI cannot derive it. Bodies come from the models that check them; what a
route answers is in the table below, and a route that is not in it is an error at the start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.routing import BaseRoute

from openai_frontend import anthropic_answers
from openai_frontend.answer_models import anthropic, completions, responses, server
from openai_frontend.answer_models.base import ErrorAnswer
from openai_frontend.anthropic_messages import CountTokensRequest, MessagesRequest
from openai_frontend.errors import kinds_of
from openai_frontend.protocol.requests import ChatCompletionRequest, CompletionRequest
from openai_frontend.response_history import ItemQuery
from openai_frontend.responses_api import ResponsesRequest
from openai_frontend.tokenize_requests import DetokenizeRequest, TokenizeRequest
from openai_frontend.version import VERSION

_JSON, _EVENTS = "application/json", "text/event-stream"
_REF: Final = "#/components/schemas/{model}"
Schema = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Operation:
    """What a route takes and answers.

    Attributes:
        body: of the request, None if it has none.
        query: of the URL, None if it has none.
        answer: of an answer in JSON, None if there is no such answer.
        event: of an event's data, if the answer can be streamed.
        others: media types of answers that are not JSON.
        statuses: of errors, besides those that every route has.
        is_cached: whether 304 may be answered.
    """

    body: type[BaseModel] | None = None
    query: type[BaseModel] | None = None
    answer: type[BaseModel] | None = None
    event: type[BaseModel] | None = None
    others: tuple[str, ...] = ()
    statuses: tuple[int, ...] = ()
    is_cached: bool = False


_PROMPT_ERRORS = (400, 404, 408, 429, 503)
# By path, or by method and path where methods differ.
_OPERATIONS: Final[Mapping[str, _Operation]] = {
    "/v1/chat/completions": _Operation(
        body=ChatCompletionRequest,
        answer=completions.ChatCompletion,
        event=completions.ChatCompletionChunk,
        statuses=_PROMPT_ERRORS,
    ),
    "/v1/completions": _Operation(
        body=CompletionRequest,
        answer=completions.Completion,
        event=completions.CompletionChunk,
        statuses=_PROMPT_ERRORS,
    ),
    "/v1/responses": _Operation(
        body=ResponsesRequest,
        answer=responses.Response,
        others=(_EVENTS,),
        statuses=_PROMPT_ERRORS,
    ),
    "/v1/responses/{id}": _Operation(answer=responses.Response, statuses=(400, 404)),
    "DELETE /v1/responses/{id}": _Operation(answer=responses.DeletedResponse, statuses=(404,)),
    "/v1/responses/{id}/cancel": _Operation(statuses=(400, 404)),
    "/v1/responses/{id}/input_items": _Operation(
        query=ItemQuery, answer=responses.ResponseItemList, statuses=(400, 404)
    ),
    "/v1/messages": _Operation(
        body=MessagesRequest,
        answer=anthropic.AnthropicMessage,
        others=(_EVENTS,),
        statuses=_PROMPT_ERRORS,
    ),
    "/v1/messages/count_tokens": _Operation(
        body=CountTokensRequest, answer=anthropic.TokenCount, statuses=_PROMPT_ERRORS
    ),
    "/tokenize": _Operation(body=TokenizeRequest, answer=server.Tokens, statuses=_PROMPT_ERRORS),
    "/detokenize": _Operation(
        body=DetokenizeRequest, answer=server.DetokenizedText, statuses=_PROMPT_ERRORS
    ),
    "/v1/models": _Operation(answer=server.ModelList, statuses=(503,)),
    "/v1/models/{model}": _Operation(answer=server.ModelCard, statuses=(404, 503)),
    "/health/live": _Operation(answer=server.HealthStatus),
    "/health/ready": _Operation(answer=server.HealthStatus, statuses=(503,)),
    "/health/generate": _Operation(answer=server.HealthStatus, statuses=(429, 503)),
    "/version": _Operation(answer=server.VersionAnswer),
    "/metrics": _Operation(others=("text/plain",)),
    "/openapi.json": _Operation(others=(_JSON,)),
    "/": _Operation(others=("text/html",), is_cached=True),
    "/page/{name}": _Operation(
        others=("text/css", "text/javascript", "image/svg+xml", _JSON),
        statuses=(404,),
        is_cached=True,
    ),
}
_EVERYWHERE = (413, 415, 500)
_SECURITY_SCHEMES: Final[Mapping[str, Schema]] = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}


def openapi_document(routes: Sequence[BaseRoute], needs_key: Callable[[str], bool]) -> Schema:
    """The OpenAPI 3.1 document of an application.

    Args:
        routes: all that it has.
        needs_key: whether a path is refused without an API key.
    """
    paths: dict[str, Schema] = {}
    for route in routes:
        assert isinstance(route, APIRoute)
        for method in sorted(route.methods or ()):
            operation = _operation(route, method, needs_key(route.path_format))
            paths.setdefault(route.path_format, {})[method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "triton-vlm",
            "version": VERSION,
            "description": "Vision-language models on NVIDIA Triton behind OpenAI's API.",
        },
        "paths": paths,
        "components": {
            "schemas": _component_schemas(),
            "securitySchemes": dict(_SECURITY_SCHEMES),
        },
    }


def _component_schemas() -> Schema:
    models: dict[type[BaseModel], None] = {ErrorAnswer: None}
    models[anthropic.AnthropicErrorAnswer] = None
    for operation in _OPERATIONS.values():
        for model in (operation.body, operation.answer, operation.event):
            if model is not None:
                models[model] = None
    _, definitions = models_json_schema([(m, "validation") for m in models], ref_template=_REF)
    schemas: Schema = definitions["$defs"]
    return schemas


def _operation(route: APIRoute, method: str, needs_key: bool) -> Schema:
    path = route.path_format
    described = _OPERATIONS.get(f"{method} {path}") or _OPERATIONS[path]
    result: Schema = {
        "operationId": route.name if method != "HEAD" else f"{route.name}_head",
        "summary": (route.endpoint.__doc__ or "").strip().splitlines()[0],
        "responses": _responses(path, described, method, needs_key),
    }
    if needs_key:
        result["security"] = [{name: []} for name in _SECURITY_SCHEMES]
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in sorted(route.param_convertors)
    ]
    if described.query is not None:
        properties = described.query.model_json_schema()["properties"]
        parameters += [
            {"name": name, "in": "query", "schema": schema} for name, schema in properties.items()
        ]
    if parameters:
        result["parameters"] = parameters
    if described.body is not None:
        content = {_JSON: {"schema": _ref(described.body)}}
        result["requestBody"] = {"required": True, "content": content}
    return result


def _responses(path: str, described: _Operation, method: str, needs_key: bool) -> Schema:
    content: Schema = {media_type: {} for media_type in described.others}
    if described.answer is not None:
        content[_JSON] = {"schema": _ref(described.answer)}
    if described.event is not None:
        content[_EVENTS] = {"schema": _event(described.event)}
    by_status: Schema = {}
    if content:
        by_status["200"] = _response("The answer.", content if method != "HEAD" else {})
    if described.is_cached:
        by_status["304"] = _response("What the client has is still right.", {})
    statuses = {*_EVERYWHERE, *described.statuses, *([401] if needs_key else [])}
    is_anthropic = path.startswith(anthropic_answers.PATH)
    for status in sorted(statuses):
        by_status[str(status)] = _error_response(status, is_anthropic)
    return by_status


def _event(data: type[BaseModel]) -> Schema:
    """Of each server-sent event: what it tells, then the mark of the end."""
    told = {
        "type": "string",
        "contentMediaType": _JSON,
        "contentSchema": {"anyOf": [_ref(data), _ref(ErrorAnswer)]},
    }
    return {
        "description": "Each event of the stream that `stream` asks for.",
        "type": "object",
        "required": ["data"],
        "properties": {"data": {"anyOf": [{"const": "[DONE]"}, told]}},
    }


def _response(description: str, content: Schema) -> Schema:
    headers = {"x-request-id": {"schema": {"type": "string"}, "required": True}}
    response: Schema = {"description": description, "headers": headers}
    if content:
        response["content"] = content
    return response


def _error_response(status: int, is_anthropic: bool) -> Schema:
    if is_anthropic:
        schema = _ref(anthropic.AnthropicErrorAnswer)
    else:
        types, codes = kinds_of(status)
        kinds: Schema = {"type": {"enum": types}, "code": {"enum": codes}}
        schema = {
            "allOf": [
                _ref(ErrorAnswer),
                {"properties": {"error": {"properties": kinds}}},
            ]
        }
    response = _response(f"{HTTPStatus(status).phrase}.", {_JSON: {"schema": schema}})
    if status in (429, 503):
        seconds = {"type": "string", "pattern": "^[0-9]+$"}
        response["headers"]["retry-after"] = {"schema": seconds, "required": True}
    return response


def _ref(model: type[BaseModel]) -> Schema:
    return {"$ref": _REF.format(model=model.__name__)}
