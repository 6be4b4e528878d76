"""What a response continues, what is kept of it, and the list of what it answered."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import pydantic_core
from pydantic import BaseModel, ConfigDict, Field

from openai_frontend.api_keys import ApiKey
from openai_frontend.errors import ResponseNotFoundError
from openai_frontend.response_items import InputItem, InputItems
from openai_frontend.response_store import ResponseStore, StoredResponse
from openai_frontend.responses_api import ResponsesRequest
from openai_frontend.sse import dumps
from python_backend.errors import InvalidRequestError

_ID_PREFIXES = {
    "message": "msg",
    "function_call": "fc",
    "function_call_output": "fco",
    "reasoning": "rs",
}


class ResponseHistory:
    """The stored side of one request.

    Args:
        store: where responses are kept.
        owner: who asks.
        request: what is asked.
        max_bytes: largest conversation that is continued.

    Raises:
        ResponseNotFoundError: what shall be continued is not there.
        InvalidRequestError: that is too large, or it shall be stored and cannot be.
    """

    def __init__(
        self,
        store: ResponseStore,
        owner: ApiKey | None,
        request: ResponsesRequest,
        max_bytes: int,
    ) -> None:
        self._store = store
        self._previous = None
        if request.previous_response_id is not None:
            self._previous = self._find(owner, request.previous_response_id, max_bytes)
        if request.store and not store.is_enabled:
            raise InvalidRequestError(
                "This server stores no responses; send the request with 'store' false.",
                code="unsupported_value",
                param="store",
            )
        self._response = None
        if store.is_enabled and request.store is not False:
            input_items = dumps(request.items()).encode("utf-8", "replace")
            self._response = store.begin(owner, input_items, self._previous)

    @property
    def keep(self) -> Callable[[str, bytes], None] | None:
        """Keeps the response with an id and a body; None if nothing shall be kept."""
        return None if self._response is None else partial(self._keep, self._response)

    def earlier_items(self) -> list[InputItem]:
        """The conversation that the request continues."""
        items: list[dict[str, Any]] = []
        for turn in self._previous.conversation() if self._previous is not None else ():
            items += pydantic_core.from_json(turn.input_items)
            items += pydantic_core.from_json(turn.body)["output"]
        return InputItems.validate_python(items)

    def _find(self, owner: ApiKey | None, response_id: str, max_bytes: int) -> StoredResponse:
        try:
            response = self._store.find(owner, response_id)
        except ResponseNotFoundError as error:
            error.param = "previous_response_id"
            raise
        num_bytes = response.num_conversation_bytes
        if num_bytes > max_bytes:  # before all of it is parsed for a small request
            raise InvalidRequestError(
                f"The conversation of '{response_id}' has {num_bytes} bytes, and a request may have "
                f"{max_bytes}; begin a new one.",
                param="previous_response_id",
            )
        return response

    def _keep(self, response: StoredResponse, response_id: str, body: bytes) -> None:
        response.body = body
        self._store.add(response_id, response)


class ItemQuery(BaseModel):
    """Query of `GET /v1/responses/{id}/input_items`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    limit: int = Field(20, ge=1, le=100)
    order: Literal["asc", "desc"] = "desc"
    after: str = ""


def item_list(response_id: str, response: StoredResponse, query: ItemQuery) -> dict[str, Any]:
    """A page of the items that a request brought, without those it continued.

    Raises:
        InvalidRequestError: there is no item `query.after`.
    """
    suffix = response_id.removeprefix("resp_")
    items = [
        _listed(item, f"{suffix}_{i}")
        for i, item in enumerate(pydantic_core.from_json(response.input_items))
    ]
    if query.order == "desc":
        items.reverse()
    start = 0
    if query.after:
        ids = [item["id"] for item in items]
        if query.after not in ids:
            raise InvalidRequestError(
                f"There is no item with the id '{query.after}'.", param="after"
            )
        start = ids.index(query.after) + 1
    page = items[start : start + query.limit]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": start + len(page) < len(items),
    }


def _listed(item: dict[str, Any], suffix: str) -> dict[str, Any]:
    """An item with an id and a status; the content of a message is a list."""
    ids = {"id": f"{_ID_PREFIXES[item['type']]}_{suffix}", "status": "completed"}
    item = ids | item
    if item["type"] == "message" and isinstance(item["content"], str):
        kind = "output_text" if item["role"] == "assistant" else "input_text"
        item["content"] = [{"type": kind, "text": item["content"]}]
    return item
