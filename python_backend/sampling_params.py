"""What a request asks of generation: one frozen, checked object and its JSON form."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from types import MappingProxyType
from typing import Any, Final, Literal

from python_backend.errors import InvalidRequestError
from python_backend.tool_calls import check_tool_calls

MAX_CHOICES: Final = 128
"""Choices of one request; the limit of the OpenAI API."""
MAX_LOGPROBS: Final = 20
"""Alternatives reported per token; the limit of the OpenAI API."""
MAX_STOP_STRINGS: Final = 16
"""The OpenAI API allows 4."""
MAX_STOP_STRING_CHARS: Final = 1024
"""Bounds the text held back while a stop string may be beginning."""
MAX_LOGIT_BIAS: Final = 100.0
"""Largest absolute bias; the limit of the OpenAI API."""
MAX_TEMPERATURE: Final = 2.0
"""The limit of the OpenAI API."""
MAX_PENALTY: Final = 2.0
"""Largest absolute presence or frequency penalty; the limit of the OpenAI API."""

MAX_GRAMMAR_CHARS: Final = 65_536
MAX_REGEX_CHARS: Final = 4096
MAX_GRAMMAR_CHOICES: Final = 1024
"""Strings of the grammar `choice`."""

_MAX_SEED = 2**63
_MAX_PRIORITY = 2**31 - 1
_MAX_SHOWN_CHARS = 80


GrammarKind = Literal["json_schema", "regex", "grammar", "choice", "tool_calls"]


@dataclass(frozen=True, slots=True)
class Grammar:
    """What the whole text of an answer must match.

    Attributes:
        kind: `json_schema`, `regex`, `grammar` (EBNF as in Lark or in GBNF), `choice` (one of some
            strings) or `tool_calls` (calls of functions, see `tool_calls.check_tool_calls`).
        text: the expression or grammar as it is, everything else as JSON.
    """

    kind: GrammarKind
    text: str

    def __post_init__(self) -> None:
        limit = MAX_REGEX_CHARS if self.kind == "regex" else MAX_GRAMMAR_CHARS
        if len(self.text) > limit:
            raise InvalidRequestError(
                f"the grammar ({self.kind}) has {len(self.text)} characters; it can have at most {limit}",
                param="grammar",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to choose the next tokens of a request and when to stop.

    Attributes:
        max_tokens: most tokens to generate per choice; None: the rest of the context.
        min_tokens: no end-of-sequence token, stop token or stop string before so many tokens.
        temperature: divides the logits; 0 takes the most likely token.
        top_p: sample from the fewest tokens whose probabilities sum to at least this.
        top_k: sample from this many most likely tokens; None: from all.
        min_p: drop tokens less likely than this share of the most likely token's probability.
        seed: the same seed gives the same tokens; None: seeded by the operating system.
        n: choices to generate.
        stop: text that ends generation.
        stop_token_ids: tokens that end generation, besides the end-of-sequence tokens.
        ignore_eos: go on after an end-of-sequence token.
        include_stop_str_in_output: keep the matched stop string at the end of the text.
        presence_penalty: subtracted from the logit of each token already generated.
        frequency_penalty: subtracted once per time a token was already generated.
        repetition_penalty: divides positive and multiplies negative logits of the tokens in the
            prompt or already generated; 1 changes nothing.
        logit_bias: token id to a number added to its logit. Read-only.
        logprobs: most likely alternatives to report per token; 0: the chosen token only; None: no
            log probabilities.
        grammar: what each answer must match, from its first token, or the first after its reasoning, to its
            end.
        cache_salt: prompts take over what is in the KV cache from prompts with the same salt only.
        caller: whom the request is for: of several who wait, each has its turn.
        skip_special_tokens: leave control tokens out of the text.
        priority: requests with a lower one leave the waiting queue earlier.
        return_token_ids: tell the prompt's tokens too; those of the answer are always told.
        prompt_logprobs: as `logprobs`, for the tokens of the prompt; None: nothing about them.
        separate_reasoning: tell a reasoning model's thoughts from its answer; without, they are one text.
        return_timing: tell with the last token where the time went.

    Raises:
        InvalidRequestError: a value is outside its limits; `param` names the field.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    min_p: float = 0.0
    seed: int | None = None
    n: int = 1
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    # A mapping proxy has no hash: equal objects still hash alike without it.
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    logprobs: int | None = None
    grammar: Grammar | None = None
    cache_salt: str | None = None
    caller: str | None = None
    skip_special_tokens: bool = True
    priority: int = 0
    return_token_ids: bool = False
    prompt_logprobs: int | None = None
    separate_reasoning: bool = True
    return_timing: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "logit_bias", MappingProxyType(dict(self.logit_bias)))
        _check_range("max_tokens", self.max_tokens, 1, math.inf)
        _check_range("min_tokens", self.min_tokens, 0, math.inf)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequestError(
                f"min_tokens is {self.min_tokens}; it must be at most max_tokens, which is "
                f"{self.max_tokens}",
                param="min_tokens",
            )
        _check_range("temperature", self.temperature, 0, MAX_TEMPERATURE)
        _check_range("top_p", self.top_p, 0, 1)
        _check_range("top_k", self.top_k, 1, math.inf, hint=" (leave it out to sample from all)")
        _check_range("min_p", self.min_p, 0, 1)
        _check_range("seed", self.seed, -_MAX_SEED, _MAX_SEED - 1)
        _check_range("n", self.n, 1, MAX_CHOICES)
        _check_range("presence_penalty", self.presence_penalty, -MAX_PENALTY, MAX_PENALTY)
        _check_range("frequency_penalty", self.frequency_penalty, -MAX_PENALTY, MAX_PENALTY)
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0):
            raise InvalidRequestError(
                f"repetition_penalty is {self.repetition_penalty}; it must be greater than 0 and "
                "finite",
                param="repetition_penalty",
            )
        _check_range("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        _check_range("prompt_logprobs", self.prompt_logprobs, 0, MAX_LOGPROBS)
        _check_range("priority", self.priority, -_MAX_PRIORITY, _MAX_PRIORITY)
        if self.grammar is not None and (self.ignore_eos or self.min_tokens):
            name = "ignore_eos" if self.ignore_eos else "min_tokens"
            raise InvalidRequestError(
                f"{name} cannot be combined with a grammar, which says itself where an answer ends",
                param=name,
            )
        if self.cache_salt == "":
            raise InvalidRequestError(
                "cache_salt is empty; it must be at least one character", param="cache_salt"
            )
        self._check_collections()

    def _check_collections(self) -> None:
        if len(self.stop) > MAX_STOP_STRINGS:
            raise InvalidRequestError(
                f"stop has {len(self.stop)} strings; it can have at most {MAX_STOP_STRINGS}",
                param="stop",
            )
        for i, text in enumerate(self.stop):
            if not 1 <= len(text) <= MAX_STOP_STRING_CHARS:
                raise InvalidRequestError(
                    f"stop[{i}] has {len(text)} characters; it must have 1 to "
                    f"{MAX_STOP_STRING_CHARS}",
                    param=f"stop[{i}]",
                )
        for i, token_id in enumerate(self.stop_token_ids):
            _check_range(f"stop_token_ids[{i}]", token_id, 0, math.inf)
        for token_id, bias in self.logit_bias.items():
            if token_id < 0:
                raise InvalidRequestError(
                    f"logit_bias has the token id {token_id}; token ids are at least 0",
                    param="logit_bias",
                )
            _check_range(f"logit_bias[{token_id}]", bias, -MAX_LOGIT_BIAS, MAX_LOGIT_BIAS)

    @property
    def is_greedy(self) -> bool:
        """Whether each token is the most likely one instead of a random draw."""
        return self.temperature == 0

    @classmethod
    def from_json(cls, text: str | bytes) -> SamplingParams:
        """Read the object that `to_json` writes.

        Args:
            text: a JSON object, UTF-8 where it is bytes. An absent or null key takes the default.

        Raises:
            InvalidRequestError: not a JSON object (`invalid_json`), a key that is no field
                (`unknown_parameter`), a value of another type (`invalid_type`), or a value outside
                its limits (`invalid_value`).
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as exc:
            raise InvalidRequestError(
                f"the sampling parameters are not valid JSON: {exc}", code="invalid_json"
            ) from exc
        if not isinstance(values, dict):
            raise InvalidRequestError(
                f"the sampling parameters are {_describe(values)}; they must be a JSON object",
                code="invalid_type",
            )
        for key in values:
            if key not in _READERS:
                raise InvalidRequestError(
                    f"{_shorten(repr(key))} is not a sampling parameter; choose from "
                    + ", ".join(_READERS),
                    code="unknown_parameter",
                    param=_shorten(key),
                )
        return cls(
            **{key: _READERS[key](key, v) for key, v in values.items() if v is not None},
        )

    def to_json(self) -> str:
        """The fields that differ from their defaults, as a JSON object that `from_json` reads."""
        values: dict[str, Any] = {}
        for item in fields(self):
            default = item.default if item.default_factory is MISSING else item.default_factory()
            value = getattr(self, item.name)
            if value != default:
                values[item.name] = _to_json_value(value)
        return json.dumps(values, separators=(",", ":"), allow_nan=False)


def _to_json_value(value: Any) -> Any:
    if isinstance(value, MappingProxyType):
        return dict(value)
    if isinstance(value, Grammar):
        is_text = value.kind in ("regex", "grammar")
        return {value.kind: value.text if is_text else json.loads(value.text)}
    return value


def _check_range(
    param: str, value: float | None, lowest: float, highest: float, hint: str = ""
) -> None:
    """Refuse a number outside [lowest, highest], and NaN; None stands for a default."""
    if value is None or (lowest <= value <= highest and abs(value) != math.inf):
        return
    limits = f"at least {lowest}" if highest == math.inf else f"from {lowest} to {highest}"
    shown = _shorten(str(value)) if isinstance(value, float) or abs(value) < 1e30 else "too large"
    raise InvalidRequestError(f"{param} is {shown}; it must be {limits}{hint}", param=param)


def _shorten(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN_CHARS else text[:_MAX_SHOWN_CHARS] + "..."


def _describe(value: object) -> str:
    """What a JSON value is, for an error message."""
    match value:
        case None:
            return "null"
        case bool():
            return f"the boolean {str(value).lower()}"
        case int() | float():
            return "a number"
        case str():
            return f"the string {_shorten(repr(value))}"
        case list():
            return "a list"
        case _:
            return "an object"


def _wrong_type(param: str, value: object, expected: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"{param} is {_describe(value)}; it must be {expected}", code="invalid_type", param=param
    )


def _read_int(param: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong_type(param, value, "an integer")
    return value


def _read_float(param: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong_type(param, value, "a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InvalidRequestError(f"{param} is {number}; it must be finite", param=param)
    return number


def _read_bool(param: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise _wrong_type(param, value, "true or false")
    return value


def _read_str(param: str, value: object) -> str:
    if not isinstance(value, str):
        raise _wrong_type(param, value, "a string")
    return value


def _read_strs(param: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise _wrong_type(param, value, "a list of strings")
    return tuple(_read_str(f"{param}[{i}]", item) for i, item in enumerate(value))


def _read_ints(param: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise _wrong_type(param, value, "a list of integers")
    return tuple(_read_int(f"{param}[{i}]", item) for i, item in enumerate(value))


def _read_logit_bias(param: str, value: object) -> dict[int, float]:
    if not isinstance(value, dict):
        raise _wrong_type(param, value, "an object of token ids and numbers")
    bias: dict[int, float] = {}
    for key, item in value.items():
        if not (key.isascii() and key.isdigit() and len(key) <= 10):
            raise InvalidRequestError(
                f"{param} has the key {_shorten(repr(key))}; keys must be token ids", param=param
            )
        bias[int(key)] = _read_float(f"{param}[{key}]", item)
    return bias


def _read_grammar(param: str, value: object) -> Grammar:
    if not isinstance(value, dict) or len(value) != 1:
        raise _wrong_type(param, value, "an object with one key, the kind of grammar")
    ((kind, item),) = value.items()
    match kind:
        case "regex" | "grammar":
            return Grammar(kind, _read_str(param, item))
        case "json_schema":
            if not isinstance(item, dict):
                raise _wrong_type(param, item, "a JSON schema, which is an object")
            return Grammar(kind, json.dumps(item))
        case "choice":
            choices = _read_strs(param, item)
            if not 1 <= len(choices) <= MAX_GRAMMAR_CHOICES:
                raise InvalidRequestError(
                    f"{param} has {len(choices)} choices; it must have 1 to {MAX_GRAMMAR_CHOICES}",
                    param=param,
                )
            return Grammar(kind, json.dumps(choices))
        case "tool_calls":
            check_tool_calls(param, item)
            return Grammar(kind, json.dumps(item))
    raise InvalidRequestError(
        f"{_shorten(repr(kind))} is no kind of grammar; choose from "
        "json_schema, regex, grammar, choice, tool_calls",
        param=param,
    )


_READERS: Final[dict[str, Callable[[str, object], Any]]] = {
    "max_tokens": _read_int,
    "min_tokens": _read_int,
    "temperature": _read_float,
    "top_p": _read_float,
    "top_k": _read_int,
    "min_p": _read_float,
    "seed": _read_int,
    "n": _read_int,
    "stop": _read_strs,
    "stop_token_ids": _read_ints,
    "ignore_eos": _read_bool,
    "include_stop_str_in_output": _read_bool,
    "presence_penalty": _read_float,
    "frequency_penalty": _read_float,
    "repetition_penalty": _read_float,
    "logit_bias": _read_logit_bias,
    "logprobs": _read_int,
    "grammar": _read_grammar,
    "cache_salt": _read_str,
    "caller": _read_str,
    "skip_special_tokens": _read_bool,
    "priority": _read_int,
    "return_token_ids": _read_bool,
    "prompt_logprobs": _read_int,
    "separate_reasoning": _read_bool,
    "return_timing": _read_bool,
}
