"""Request bodies that are wrong in one or more ways, for every endpoint; the same ones for a seed."""

from __future__ import annotations

import base64
import copy
import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from openai_frontend.anthropic_messages import MessagesRequest
from openai_frontend.protocol.requests import ChatCompletionRequest, CompletionRequest
from openai_frontend.responses_api import ResponsesRequest
from openai_frontend.unsupported import (
    UNSUPPORTED_CHAT,
    UNSUPPORTED_MESSAGES,
    UNSUPPORTED_RESPONSES,
)

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
MESSAGES, COUNT_TOKENS = "/v1/messages", "/v1/messages/count_tokens"
TOKENIZE, DETOKENIZE = "/tokenize", "/detokenize"
WITH_IMAGES = (CHAT, RESPONSES, MESSAGES, COUNT_TOKENS, TOKENIZE)

_STAND_IN = "\N{BLACK DIAMOND SUIT}"
_STAND_IN_JSON = f'"{_STAND_IN}"'.encode()
"""Takes the place of one of `_VALUES`, which `json.dumps` would not write."""

# Values of all types, as bytes, because some of them are no JSON, and some no UTF-8.
_NUMBERS = (
    *b"0 -1 1 2 1.5 -0.0 1e308 1e-400 0.1e99999999999 1e400 NaN -Infinity 01 +1 .5 0x10".split(),
    *(b"9223372036854775808", b"-9223372036854775809", b"1" + b"0" * 5000),
)
_TEXTS = (
    *rb'"" "text" "1" "\u0000" "\ud800" "\udc00\ud800" "\ud83d\ude00" "\x41" undefined'.split(),
    *(b'" "', b'"' + b"long " * 20_000 + b'"', b'"<|image_pad|>"', b'"<|im_end|>"', b'"\x00"'),
    *rb'"(" "[^" "a{99999}" "((a{99}){99}){99}" "(?=a)" "start: start" "\\p{L}"'.split(),
    *(b'"\xff\xfe"', b'"\xc0\xaf"', b'"\xed\xa0\x80"', '"é\u202e\ufeff\U000f0000"'.encode()),
)
_COLLECTIONS = (
    *b'[] {} [null] [[]] [""] [{}] {"":null} {"type":null} [1,2,] {"__proto__":{}}'.split(),
    *b'{"type":"text"} {"type":"image_url"} [{"type":"text","text":{}}] {"a":1,"a":2}'.split(),
    *b'["data:image/png;base64,"] {"url":""} {"url":"data:,"}'.split(),
    *(b"[" * 190 + b"]" * 190, b"[" * 100_000, b'{"a":' * 300 + b"1" + b"}" * 300),
    b"[1" + b",1" * 5000 + b"]",
)
_VALUES = (b"null", b"true", b"false", *_NUMBERS, *_TEXTS, *_COLLECTIONS)
_REQUESTS = (ChatCompletionRequest, CompletionRequest, ResponsesRequest, MessagesRequest)
_NAMES = (
    *sorted({name for request in _REQUESTS for name in request.model_fields}),
    *sorted(UNSUPPORTED_CHAT | UNSUPPORTED_RESPONSES | UNSUPPORTED_MESSAGES),
    *("", "Model", "max_tokens ", "\0", "a" * 1000, "__class__", "temprature", "é", "messages[0]"),
)
"""Of fields that some endpoint knows, most of them of another one, and of none."""
_SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "string", "pattern": "^a+$"}, "b": {"enum": [1, "b"]}},
    "required": ["a"],
}


@dataclass(frozen=True)
class Case:
    """One request, and what to call it."""

    name: str
    path: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


Bodies = Sequence[tuple[str, dict[str, Any]]]
"""Paths and what is posted there."""


def good_bodies(model: str, picture: bytes) -> Bodies:
    """Bodies that are right, for every endpoint and for what is checked in a way of its own."""
    url, data = data_url(picture), base64.b64encode(picture).decode()
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": _SCHEMA}}
    sampling = {"temperature": 0, "top_p": 0.9, "seed": 1, "stop": ["x"], "logit_bias": {"5": 1}}
    text = {"model": model, "prompt": "Red", "max_tokens": 1}
    turns = [{"role": role, "content": "Hi."} for role in ("system", "user", "assistant", "user")]
    return (
        (CHAT, chat_body(model, url) | sampling | {"logprobs": True, "top_logprobs": 1}),
        (CHAT, {"model": model, "messages": turns, "max_tokens": 1, "response_format": form}),
        (COMPLETIONS, text | {"n": 1, "best_of": 2, "echo": True, "logprobs": 1}),
        (COMPLETIONS, text | {"structured_outputs": {"json": _SCHEMA}}),
        (COMPLETIONS, text | {"structured_outputs": {"grammar": 'start: "a"+'}}),
        (COMPLETIONS, text | {"regex": "[a-z]+", "prompt_logprobs": 1}),
        (RESPONSES, responses_body(model, url) | {"instructions": "Look.", "metadata": {"a": "b"}}),
        (
            MESSAGES,
            messages_body(model, data)
            | {"system": "Look.", "stop_sequences": ["x"], "metadata": {"user_id": "a"}},
        ),
        (COUNT_TOKENS, count_tokens_body(model, data)),
        (TOKENIZE, tokenize_body(model, url) | {"mm_processor_kwargs": {"max_pixels": 3136}}),
        (DETOKENIZE, {"model": model, "tokens": [1, 2, 3]}),
    )


def chat_body(model: str, url: str) -> dict[str, Any]:
    return tokenize_body(model, url) | {"max_tokens": 1}


def tokenize_body(model: str, url: str) -> dict[str, Any]:
    image = {"type": "image_url", "image_url": {"url": url, "detail": "auto"}}
    content = [{"type": "text", "text": "?"}, image]
    return {"model": model, "messages": [{"role": "user", "content": content}]}


def responses_body(model: str, url: str) -> dict[str, Any]:
    image = {"type": "input_image", "image_url": url, "detail": "auto"}
    content = [{"type": "input_text", "text": "?"}, image]
    message = {"role": "user", "content": content}
    return {"model": model, "input": [message], "max_output_tokens": 1, "store": False}


def messages_body(model: str, data: str) -> dict[str, Any]:
    return count_tokens_body(model, data) | {"max_tokens": 1}


def count_tokens_body(model: str, data: str) -> dict[str, Any]:
    source = {"type": "base64", "media_type": "image/png", "data": data}
    content = [{"type": "text", "text": "?"}, {"type": "image", "source": source}]
    return {"model": model, "messages": [{"role": "user", "content": content}]}


def data_url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


_WITH_URL = {CHAT: chat_body, RESPONSES: responses_body, TOKENIZE: tokenize_body}
_WITH_DATA = {MESSAGES: messages_body, COUNT_TOKENS: count_tokens_body}


def image_case(name: str, model: str, image: bytes, path: str) -> Case:
    """A request that is right but for its image."""
    if path in _WITH_URL:
        body = _WITH_URL[path](model, data_url(image))
    else:
        body = _WITH_DATA[path](model, base64.b64encode(image).decode())
    return Case(f"{path}: {name}", path, json.dumps(body).encode())


def malformed_urls(random: Random, model: str, picture: bytes, num_cases: int) -> Iterator[Case]:
    """Requests that are right but for the URL of their image."""
    good, pick = data_url(picture), random.choice
    types = ("", "text/html", "image/*", "IMAGE/PNG", "image/svg+xml")
    separators = (",", ";base64", ";base64;", ";hex,", ";;base64,,")
    schemes = ("DATA:", "data :", " data:", "\tdata:", "data://", "blob:")
    others = ("", " ", "data", "data:", "data:,", "x", "//x", "file:///etc/passwd", "ftp://x/y")
    changes: tuple[Callable[[], str], ...] = (
        lambda: good[: random.randrange(len(good))],
        lambda: good.replace("image/png", pick(types)),
        lambda: good.replace(";base64,", pick(separators)),
        lambda: _inserted(random, good, pick(("=", " ", "\n", "%00", "-", "é", "\0", "\ud800"))),
        lambda: pick(schemes) + good.removeprefix("data:"),
        lambda: good.rstrip("=") + pick(("", "=", "===", "====", "A", "=A", "\n")),
        lambda: "data:image/png;base64," + pick(("", "=", "A" * 7, "A" * 100_000, "/" * 4096)),
        lambda: data_url(base64.b64encode(picture)),
        lambda: pick(others),
    )
    for i in range(num_cases):
        path = tuple(_WITH_URL)[i % len(_WITH_URL)]
        body = _WITH_URL[path](model, changes[i // len(_WITH_URL) % len(changes)]())
        yield Case(f"{path}: URL {i}", path, json.dumps(body).encode())


def malformed_values(random: Random, bodies: Bodies, num_cases: int) -> Iterator[Case]:
    """Good bodies of which one to three values are replaced, left out, repeated or added."""
    for i in range(num_cases):
        path, good = bodies[i % len(bodies)]
        body = copy.deepcopy(good)
        for _ in range(random.choice((1, 1, 1, 2, 3))):
            _change(random, body)
        first, *others = json.dumps(body, ensure_ascii=False).encode().split(_STAND_IN_JSON)
        text = first + b"".join(random.choice(_VALUES) + other for other in others)
        yield Case(f"{path}: values {i}", path, text)


def _change(random: Random, body: dict[str, Any]) -> None:
    container, key = random.choice([*_places(body)])
    kind = random.choice(("replaced", "replaced", "replaced", "left out", "repeated", "added"))
    if kind == "left out" and len(container) > 1:
        container.pop(key)
    elif kind == "repeated" and isinstance(container, list):
        container.extend([container[key]] * random.randint(1, 20))
    elif kind == "added" and isinstance(container, dict):
        container[random.choice(_NAMES)] = _STAND_IN
    else:
        container[key] = _STAND_IN


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        yield value, key
        if isinstance(item, dict | list) and item:
            yield from _places(item)


def malformed_texts(random: Random, bodies: Bodies, num_cases: int) -> Iterator[Case]:
    """Good bodies whose bytes are not what they should be, or not said to be what they are."""
    pick = random.choice
    encodings = ("utf-16", "utf-16-le", "utf-32", "utf-8-sig", "utf-7")
    no_objects = (b"", b" ", b"null", b"[]", b'""', b"1", b"{", b"\xef\xbb\xbf", b"[" * 50_000)
    begins = (b'"model":1,', b'"messages":[],', b'"max_tokens":"x",')
    ends = (b',"model":null}', b',"model":"x"}', b',"stream":1}')
    changes: tuple[Callable[[bytes], bytes], ...] = (
        lambda text: text[: random.randrange(len(text))],
        lambda text: text[random.randrange(1, len(text)) :],
        lambda text: _with_bytes(random, text, random.randbytes(random.randint(1, 4))),
        lambda text: _with_bytes(random, text, bytes([pick(b'\0\xff"{]\\,')])),
        lambda text: text.decode().encode(pick(encodings)),
        lambda text: text + pick((b"}", text, b"\0", b"null", b"//")),
        lambda text: pick(no_objects),
        lambda text: b"{" + pick(begins) + text[1:],
        lambda text: text[:-1] + pick(ends),
        lambda text: gzip.compress(text, mtime=0),
        lambda text: text.replace(b'": ', b'":\r\n\t ').replace(b"?", b"\n"),
    )
    more_headers: tuple[dict[str, str], ...] = (
        *({}, {}, {}, {"Content-Encoding": "gzip"}, {"Content-Encoding": "br"}),
        *({"Content-Type": "text/plain"}, {"Content-Type": "multipart/form-data"}),
        *({"Content-Type": "application/json; charset=utf-16"}, {"Content-Type": "\xff"}),
    )
    for i in range(num_cases):
        path, good = bodies[i % len(bodies)]
        body = changes[i // len(bodies) % len(changes)](json.dumps(good).encode())
        yield Case(f"{path}: text {i}", path, body, pick(more_headers))


def _with_bytes(random: Random, text: bytes, inserted: bytes) -> bytes:
    at = random.randrange(len(text))
    return text[:at] + inserted + text[at + random.randint(0, 2) :]


def _inserted(random: Random, text: str, inserted: str) -> str:
    at = random.randrange(len(text))
    return text[:at] + inserted + text[at:]
