"""The HTTP routes: each takes a request apart, calls one object and wraps its answer."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import ClientDisconnect

from openai_frontend.backend import Backend, ModelInfo
from openai_frontend.chat import ChatService
from openai_frontend.disconnect import until_disconnect
from openai_frontend.errors import ModelNotFoundError, ServiceUnavailableError
from openai_frontend.generation import Generation
from openai_frontend.health_probe import GenerationProbe
from openai_frontend.record import RequestRecord
from openai_frontend.response_history import ItemQuery, item_list
from openai_frontend.response_store import ResponseStore, StoredResponse
from openai_frontend.sse import EventStreamResponse
from openai_frontend.tokenization import Tokenization
from openai_frontend.validation import NoQuery, parse_query
from openai_frontend.version import VERSION
from python_backend.errors import InvalidRequestError, RequestCancelledError

router = APIRouter()
_T = TypeVar("_T")
_OfBody = Callable[[bytearray, RequestRecord], Coroutine[Any, Any, _T]]


@router.post("/v1/chat/completions")
async def create_chat_completion(request: Request) -> Response:
    """OpenAI's chat completions, streamed or whole."""
    return await _generate(request, _service(request).prepare_chat)


@router.post("/v1/completions")
async def create_completion(request: Request) -> Response:
    """OpenAI's plain completions, streamed or whole."""
    return await _generate(request, _service(request).prepare_completion)


@router.post("/v1/messages")
async def create_message(request: Request) -> Response:
    """Anthropic's messages, streamed or whole."""
    return await _generate(request, _service(request).prepare_messages)


@router.post("/v1/messages/count_tokens")
async def count_tokens(request: Request) -> Response:
    """How many tokens a message would be asked with."""
    num_tokens = await _from_body(request, _tokenization(request).count_tokens)
    return JSONResponse({"input_tokens": num_tokens})


@router.post("/v1/responses")
async def create_response(request: Request) -> Response:
    """OpenAI's responses, streamed or whole."""
    return await _generate(request, _service(request).prepare_response)


@router.get("/v1/responses/{id}")
async def get_response(request: Request) -> Response:
    """A stored response."""
    parse_query(request.query_params.multi_items(), NoQuery)
    return Response(_stored(request).body, media_type="application/json")


@router.delete("/v1/responses/{id}")
async def delete_response(request: Request) -> Response:
    """Forgets a stored response."""
    response_id = request.path_params["id"]
    _responses(request).remove(request.state.record.api_key, response_id)
    return JSONResponse({"id": response_id, "object": "response", "deleted": True})


@router.post("/v1/responses/{id}/cancel")
async def cancel_response(request: Request) -> Response:
    """Refused: a response is stored when it has come to its end."""
    _stored(request)
    raise InvalidRequestError(
        "This response has ended, and there are none in the background; to cancel a running one, close its "
        "connection."
    )


@router.get("/v1/responses/{id}/input_items")
async def list_input_items(request: Request) -> Response:
    """What the request of a stored response brought."""
    query = parse_query(request.query_params.multi_items(), ItemQuery)
    return JSONResponse(item_list(request.path_params["id"], _stored(request), query))


@router.post("/tokenize")
async def tokenize(request: Request) -> Response:
    """The tokens of a text or a conversation."""
    return JSONResponse(await _from_body(request, _tokenization(request).tokenize))


@router.post("/detokenize")
async def detokenize(request: Request) -> Response:
    """The text of tokens."""
    text = await _from_body(request, _tokenization(request).detokenize)
    return JSONResponse({"prompt": text})


@router.get("/v1/models")
async def list_models(request: Request) -> Response:
    """Models that can be asked for."""
    backend: Backend = request.app.state.backend
    models = [_model_json(model) for model in await backend.models()]
    return JSONResponse({"object": "list", "data": models})


@router.get("/v1/models/{model:path}")
async def get_model(request: Request, model: str) -> Response:
    """One model; ids such as `Qwen/Qwen2.5-VL-3B-Instruct` have slashes."""
    backend: Backend = request.app.state.backend
    info = await backend.find_model(model)
    if info is None:
        raise ModelNotFoundError(model)
    return JSONResponse(_model_json(info))


@router.get("/health/live")
async def is_live() -> Response:
    """Whether this process answers."""
    return JSONResponse({"status": "live"})


@router.get("/health/ready")
async def is_ready(request: Request) -> Response:
    """Whether a generation request sent now would be served."""
    backend: Backend = request.app.state.backend
    if not await backend.is_ready():
        raise ServiceUnavailableError
    return JSONResponse({"status": "ready"})


@router.get("/health/generate")
async def is_generating(request: Request) -> Response:
    """Whether every model generates a token now."""
    probe: GenerationProbe = request.app.state.probe
    await probe.check()
    return JSONResponse({"status": "generating"})


@router.get("/version")
async def get_version() -> Response:
    """The version of this server."""
    return JSONResponse({"version": VERSION})


@router.get("/openapi.json")
async def get_openapi(request: Request) -> Response:
    """This document."""
    return JSONResponse(request.app.state.openapi)


@router.get("/metrics")
async def get_metrics(request: Request) -> Response:
    """Prometheus metrics."""
    return Response(request.app.state.metrics.render(), media_type=CONTENT_TYPE_LATEST)


async def _body(request: Request) -> bytearray:
    # request.body() would keep the bytes, with all images in base64, until the answer is sent. A list of
    # chunks costs many times its bytes when a client sends them one by one.
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
        return body
    except ClientDisconnect:
        raise RequestCancelledError("The client closed the connection.") from None


def _service(request: Request) -> ChatService:
    service: ChatService = request.app.state.service
    return service


def _tokenization(request: Request) -> Tokenization:
    tokenization: Tokenization = request.app.state.tokenization
    return tokenization


def _responses(request: Request) -> ResponseStore:
    responses: ResponseStore = request.app.state.responses
    return responses


def _stored(request: Request) -> StoredResponse:
    """The stored response that the path names, if the caller has made it."""
    return _responses(request).find(request.state.record.api_key, request.path_params["id"])


async def _from_body(request: Request, method: _OfBody[_T]) -> _T:
    """What a method of the service makes of the body, unless the client leaves first."""
    made = method(await _body(request), request.state.record)
    return await until_disconnect(request.receive, made)


async def _generate(request: Request, prepare: _OfBody[Generation]) -> Response:
    generation = await _from_body(request, prepare)
    service, record = _service(request), request.state.record
    if generation.is_stream:
        opened = EventStreamResponse.opened(service.events(generation, record))
        return await until_disconnect(request.receive, opened)
    body = await until_disconnect(request.receive, service.answer(generation, record))
    return Response(body, media_type="application/json")


def _model_json(model: ModelInfo) -> dict[str, Any]:
    return {
        "id": model.id,
        "object": "model",
        "created": model.created,
        "owned_by": "triton-vlm",
        "root": model.triton_name,
        "parent": None,
        "max_model_len": model.max_model_len,
        "max_images": model.max_images,
        "calls_tools": model.tool_format is not None,
        "reasons": model.reasons,
        "takes_videos": model.takes_videos,
    }
