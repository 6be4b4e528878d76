"""OpenAI's and other servers' fields that this server knows and does not implement.

They are refused by name instead of ignored, so that nobody believes in an effect that is not there.
A field that is null, or has a value that asks for nothing, passes: many clients always send
defaults.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from python_backend.errors import InvalidRequestError

# Field -> values that change nothing here, so that clients which always send defaults still work.
_UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "metadata": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "prompt_cache_key": (),
    "prompt_cache_retention": (),
    # Extensions of other servers that change what is generated.
    "chat_template": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "json_schema": (),
    "lora_path": (),
    "use_beam_search": (False,),
}
UNSUPPORTED_CHAT: dict[str, tuple[object, ...]] = _UNSUPPORTED | {
    "audio": (),
    "echo": (False,),
    "function_call": (),
    "functions": (),
    "modalities": (["text"],),
    "moderation": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
}
UNSUPPORTED_COMPLETION: dict[str, tuple[object, ...]] = _UNSUPPORTED | {
    "chat_template_kwargs": (),
    "media_io_kwargs": (),
    "mm_processor_kwargs": (),
    "suffix": (),
}
# A client that sends our own answer back as history sends these, mostly null.
UNSUPPORTED_MESSAGE: dict[str, tuple[object, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "reasoning": (),
    "refusal": (),
}

# Of Anthropic's Messages API.
UNSUPPORTED_MESSAGES: dict[str, tuple[object, ...]] = {
    "container": (),
    "context_management": (),
    "mcp_servers": (),
    "output_config": (),
    "service_tier": ("auto", "standard_only"),
}

# Of OpenAI's Responses API.
UNSUPPORTED_RESPONSES: dict[str, tuple[object, ...]] = {
    "access_programs": (),
    "background": (False,),
    "background_options": (),
    "context_management": (),
    "conversation": (),
    "image": (),
    "max_tool_calls": (),
    "moderation": (),
    "prompt": (),
    "prompt_cache_key": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": (),
    "reasoning": (),
    "service_tier": ("auto", "default"),
    "stream_options": ({"include_obfuscation": False},),
    "truncation": ("disabled",),
}


def documented(unsupported: Mapping[str, tuple[object, ...]]) -> Callable[[dict[str, Any]], None]:
    """Adds the fields to the JSON schema of a model, with the values that pass."""

    def add(schema: dict[str, Any]) -> None:
        fields = {name: {"enum": [None, *off]} for name, off in unsupported.items()}
        schema["properties"] = {**schema["properties"], **fields}

    return add


def without_unsupported(
    fields: Mapping[str, Any], unsupported: Mapping[str, tuple[object, ...]], path: str = ""
) -> dict[str, Any]:
    """`fields` without those of `unsupported` that ask for nothing.

    Raises:
        InvalidRequestError: one of them asks for something this server does not do.
    """
    kept = {}
    for name, value in fields.items():
        if name not in unsupported:
            kept[name] = value
        elif value is not None and not any(_is_same(value, off) for off in unsupported[name]):
            raise InvalidRequestError(
                f"Unsupported parameter: '{path}{name}' is not supported by this server; "
                "remove it from the request.",
                code="unsupported_parameter",
                param=path + name,
            )
    return kept


def without_unsupported_chat(fields: Mapping[str, Any]) -> dict[str, Any]:
    """`without_unsupported` for a chat request and each of its messages."""
    kept = without_unsupported(fields, UNSUPPORTED_CHAT)
    messages = kept.get("messages")
    if isinstance(messages, list):
        kept["messages"] = [
            without_unsupported(message, UNSUPPORTED_MESSAGE, f"messages[{i}].")
            if isinstance(message, dict)
            else message
            for i, message in enumerate(messages)
        ]
    return kept


def _is_same(value: object, other: object) -> bool:
    # 1 == True in Python, but not in JSON.
    return type(value) is type(other) and value == other
