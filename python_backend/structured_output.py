"""Structured output: a grammar says at every step which tokens may come next.

llguidance does the grammar work. It needs no PyTorch, computes a mask in some 50 microseconds, and
refuses what it cannot enforce, where other libraries leave out the part that they do not know.
A grammar is compiled in the thread that takes the request in; the engine's only fills masks, those
of all rows together. What a grammar may cost is bounded: its text, its compilation, each of its
masks, and how many of them are remembered.
"""

# R rows, V vocabulary, W 32-bit words

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final

import llguidance
import llguidance.numpy
import numpy as np
import numpy.typing as npt
from llguidance.gbnf_to_lark import any_to_lark
from tokenizers import Tokenizer

from python_backend.errors import InvalidRequestError
from python_backend.sampling_params import Grammar
from python_backend.tool_grammar import to_lark

_MAX_CACHED: Final = 32
_MAX_SHOWN_CHARS: Final = 200
# In llguidance's units. With its defaults a regex of 20 characters takes seconds of a core.
_LIMITS: Final[dict[str, Any]] = {
    "initial_lexer_fuel": 200_000,
    "step_lexer_fuel": 50_000,
    "max_lexer_states": 10_000,  # up to 2 kB each
    "max_grammar_size": 100_000,
    "verbose_errors": False,
}
_JSON_STYLE: Final[Any] = {
    "whitespace_flexible": False,  # where a model may go on with spaces, a small one does for ever
    "item_separator": ", ",
    "key_separator": ": ",
}
_COMPILE_STACK_BYTES: Final = 256 * 2**20
"""The compiler recurses: rules that name each other, as many as fit the text, overflowed 8 MiB and took
the process down. Not touched, it costs address space only. Masks need less than 1 MiB."""
_NAMES: Final = {
    "json_schema": "JSON schema",
    "regex": "regular expression",
    "grammar": "grammar",
    "choice": "list of choices",
    "tool_calls": "list of functions",
}


class Constraint:
    """Where one choice is in its grammar.

    Args:
        matcher: llguidance's `LLMatcher`.
        num_token_ids: tokens that it knows; at least V.
    """

    def __init__(self, matcher: Any, num_token_ids: int) -> None:
        self._matcher = matcher
        self._num_token_ids = num_token_ids

    def copy(self) -> Constraint:
        """One that goes its own way from here."""
        return Constraint(self._matcher.deep_copy(), self._num_token_ids)

    def append(self, token_id: int) -> None:
        """Move on by a token that was allowed."""
        self._matcher.consume_token(token_id)

    @property
    def error(self) -> str:
        """Why the grammar can no longer be followed: it became too large. Empty while it can."""
        return _shorten(self._matcher.get_error()) if self._matcher.is_error() else ""

    @staticmethod
    def allowed_tokens(constraints: Sequence[Constraint]) -> npt.NDArray[np.uint32]:
        """Which tokens may come next; those that end an answer, at the grammar's end only.

        Args:
            constraints: one or more of one model. One that has an `error` afterwards has a row
                without meaning.

        Returns:
            uint32 [R, W], a bit for each token, the lowest of a word first; at least V of them.
        """
        width = constraints[0]._num_token_ids
        masks = llguidance.numpy.allocate_token_bitmask(len(constraints), width)
        for row, constraint in enumerate(constraints):
            llguidance.numpy.fill_next_token_bitmask(constraint._matcher, masks, row)
        return masks.view(np.uint32)


def unpack_tokens(words: npt.NDArray[np.uint32], vocab_size: int) -> npt.NDArray[np.bool_]:
    """A row of `Constraint.allowed_tokens` as bool [V]."""
    bits = np.unpackbits(words.view(np.uint8), count=vocab_size, bitorder="little")
    return bits.view(np.bool_)


class GrammarCompiler:
    """Grammars to constraints over one model's tokens. Any thread may use it.

    Args:
        tokenizer_path: the model's tokenizer.json, read when the first grammar comes.
        vocab_size: V, size of a row of logits; a tokenizer may know more tokens.
        eos_token_ids: tokens that end an answer.
    """

    def __init__(self, tokenizer_path: Path, vocab_size: int, eos_token_ids: Iterable[int]) -> None:
        self._tokenizer_path = tokenizer_path
        self._num_token_ids = vocab_size
        self._eos_token_ids = sorted(eos_token_ids)
        self._tokens: Any = None
        self._added_ids: dict[str, int] = {}
        self._cache: OrderedDict[Grammar, Constraint] = OrderedDict()
        self._lock = threading.Lock()

    def compile(self, grammar: Grammar | None) -> Constraint | None:
        """A constraint at the grammar's beginning; None without a grammar.

        Raises:
            InvalidRequestError: the grammar is wrong, cannot be enforced or is too large.
        """
        if grammar is None:
            return None
        with self._lock:
            if grammar not in self._cache:
                self._cache[grammar] = self._new_constraint(grammar)
                if len(self._cache) > _MAX_CACHED:
                    self._cache.popitem(last=False)
            self._cache.move_to_end(grammar)
            return self._cache[grammar].copy()

    def _new_constraint(self, grammar: Grammar) -> Constraint:
        if self._tokens is None:
            self._tokens = self._load_tokens()
        matcher = _with_deep_stack(lambda: _compile(self._tokens, grammar, self._added_ids))
        if matcher.is_error():
            if grammar.kind == "tool_calls":
                self._blame_function(grammar)
            raise _cannot_enforce(grammar, matcher.get_error())
        return Constraint(matcher, self._num_token_ids)

    def _blame_function(self, grammar: Grammar) -> None:
        """Refuse the first function whose schema alone cannot be enforced, if there is one."""
        for function in json.loads(grammar.text)["functions"]:
            schema = Grammar("json_schema", json.dumps(function["parameters"]))
            try:
                self._new_constraint(schema)
            except InvalidRequestError as error:
                raise InvalidRequestError(
                    f"function '{function['name']}': {error.message}", param="grammar"
                ) from None

    def _load_tokens(self) -> Any:
        tokenizer = Tokenizer.from_file(str(self._tokenizer_path))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._num_token_ids = max(self._num_token_ids, 1 + max(tokenizer.get_vocab().values()))
        added = tokenizer.get_added_tokens_decoder()
        self._added_ids = {token.content: token_id for token_id, token in added.items()}
        return llguidance.LLTokenizer(
            tokenizer.to_str(), n_vocab=self._num_token_ids, eos_token=self._eos_token_ids
        )


def _compile(tokens: Any, grammar: Grammar, added_ids: Mapping[str, int]) -> Any:
    matcher = llguidance.LLMatcher(
        tokens,
        _to_llguidance(grammar, added_ids),
        log_level=0,
        limits=llguidance.LLParserLimits(**_LIMITS),
    )
    if not matcher.is_error():
        # The first mask builds most of the lexer: better here than in the engine's thread.
        matcher.compute_bitmask()
    return matcher


def _to_llguidance(grammar: Grammar, added_ids: Mapping[str, int]) -> str:
    matcher = llguidance.LLMatcher
    match grammar.kind:
        case "json_schema":
            try:
                text = matcher.grammar_from_json_schema(grammar.text, overrides=_JSON_STYLE)
            except ValueError as error:  # nested deeper than its parser goes
                raise _cannot_enforce(grammar, str(error)) from None
        case "regex":
            text = matcher.grammar_from_regex(grammar.text)
        case "grammar":
            try:
                text = matcher.grammar_from_lark(any_to_lark(grammar.text))
            except Exception as error:  # it has no class of its own, and recurses without a limit
                raise _cannot_enforce(grammar, str(error)) from None
        case "choice":
            # Lark's strings are written like JSON's.
            choices = map(json.dumps, json.loads(grammar.text))
            text = matcher.grammar_from_lark(f"start: {' | '.join(choices)}")
        case "tool_calls":
            lark = to_lark(json.loads(grammar.text), added_ids, _JSON_STYLE)
            text = matcher.grammar_from_lark(lark)
    return str(text)


def _cannot_enforce(grammar: Grammar, reason: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"the {_NAMES[grammar.kind]} cannot be enforced: {_shorten(reason)}", param="grammar"
    )


def _with_deep_stack(function: Callable[[], Any]) -> Any:
    """What `function` returns or raises, run in a thread whose stack it does not overflow."""
    outcome: Future[Any] = Future()

    def run() -> None:
        try:
            outcome.set_result(function())
        except BaseException as error:
            outcome.set_exception(error)

    before = threading.stack_size(_COMPILE_STACK_BYTES)
    try:
        threading.Thread(target=run, name="grammar", daemon=True).start()
    finally:
        threading.stack_size(before)
    return outcome.result()


def _shorten(message: str) -> str:
    """The first line, of a length for people."""
    return message.strip().partition("\n")[0][:_MAX_SHOWN_CHARS]
