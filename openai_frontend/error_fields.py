"""Fields in errors, under the names that the client knows them by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from python_backend.errors import InvalidRequestError

# What the stages call the conversation or text.
_PROMPT_PARAMS = ("messages", "prompt", "prompt_token_ids")


@contextmanager
def prompt_called(param: str) -> Iterator[None]:
    """Name `param` in errors of the stages about the prompt."""
    try:
        yield
    except InvalidRequestError as error:
        if error.param in _PROMPT_PARAMS:
            error.param = param
        raise


@contextmanager
def fields_called(in_client_words: Callable[[str], str]) -> Iterator[None]:
    """Put the client's words for fields into errors of a request that was made into another one."""
    try:
        yield
    except InvalidRequestError as error:
        error.message = in_client_words(error.message)
        if error.param is not None:
            error.param = in_client_words(error.param)
        raise
