"""What each token id stands for: its bytes, its text, and how tokens join into text.

A model answers in token ids. Their bytes are needed twice: by the detokenizer, which turns them
into text as they come, and in the `logprobs` of an answer, where a token may be half a character.

The tokenizers of the families join tokens in one of three ways, told apart by the decoder in
`tokenizer.json`:

* byte-level BPE (Qwen2, Llama 3): a token is a byte sequence, the text is their concatenation.
* SentencePiece with byte fallback (Llama 2, Gemma): a token is text with `▁` for a space, or one
  byte `<0xNN>`. A run of such bytes is text if all of it is valid UTF-8, else one U+FFFD per byte.
* Metaspace (T5): as before without bytes, and the first token loses its `▁`.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from python_backend.errors import BundleError, InvalidRequestError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from python_backend.sampler_state import SampledToken

LOGPROB_FLOOR: Final = -9999.0
"""Reported for a token of probability 0; JSON has no infinity. The OpenAI API does the same."""


def finite_logprob(value: float) -> float:
    """A log probability as it is reported: at least `LOGPROB_FLOOR`."""
    return max(value, LOGPROB_FLOOR) if math.isfinite(value) else LOGPROB_FLOOR


_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_level_alphabet() -> dict[str, int]:
    """The printable character that byte-level BPE writes for each byte, to that byte.

    Source: `bytes_to_unicode` in GPT-2's encoder.py.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(0x100 + i): byte for i, byte in enumerate(others)})
    return alphabet


_BYTE_OF_CHAR: Final = _byte_level_alphabet()


@dataclass(frozen=True, slots=True)
class _JoinRules:
    """How a tokenizer's decoder joins tokens.

    Attributes:
        byte_level: tokens are written in the byte-level alphabet.
        replacements: what to replace by what in the text of a token, in order.
        byte_fallback: `<0xNN>` is a byte.
        first_token_drops: text that the first token loses everywhere, or nothing.
        strip_char: what the whole text loses at its beginning, at most `max_stripped` times.
        max_stripped: see `strip_char`.
    """

    byte_level: bool = False
    replacements: tuple[tuple[str, str], ...] = ()
    byte_fallback: bool = False
    first_token_drops: str = ""
    strip_char: str = ""
    max_stripped: int = 0


def _rules_from_decoder(decoder: dict[str, Any]) -> _JoinRules:
    """Read the `decoder` of a tokenizer.json.

    Raises:
        BundleError: it joins tokens in a way that is not known here.
    """
    steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return _JoinRules(byte_level=True)
    if kinds == ["Metaspace"]:
        marker = steps[0]["replacement"]
        drops = "" if steps[0].get("prepend_scheme") == "never" else marker
        return _JoinRules(replacements=((marker, " "),), first_token_drops=drops)
    replaces = [step for step in steps if step["type"] == "Replace"]
    strips = [step for step in steps if step["type"] == "Strip"]
    if (
        # Replace* ByteFallback? (Fuse Strip?)?
        re.fullmatch(
            r"(Replace )*(ByteFallback )?(Fuse (Strip )?)?", "".join(f"{k} " for k in kinds)
        )
        and all("String" in step["pattern"] for step in replaces)
        and all(step["stop"] == 0 for step in strips)
    ):
        return _JoinRules(
            replacements=tuple((step["pattern"]["String"], step["content"]) for step in replaces),
            byte_fallback="ByteFallback" in kinds,
            strip_char=strips[0]["content"] if strips else "",
            max_stripped=strips[0]["start"] if strips else 0,
        )
    raise BundleError(
        f"the tokenizer joins tokens by {' + '.join(kinds)}; known are byte-level BPE, "
        "SentencePiece with byte fallback, and Metaspace"
    )


@dataclass(frozen=True, slots=True)
class TokenPiece:
    """One token, ready to join.

    Attributes:
        data: the bytes that the token stands for.
        is_byte: one byte of a run of byte-fallback tokens.
        is_special: a control token, which most texts leave out.
        is_unknown: an id that the tokenizer does not know: no text.
    """

    data: bytes
    is_byte: bool = False
    is_special: bool = False
    is_unknown: bool = False


class TextStream(Protocol):
    """Joins the tokens of one choice, in order; the pieces together are the text of all tokens."""

    def push(self, token_id: int) -> str:
        """Add one token; return the text that is complete now."""
        ...

    def flush(self) -> str:
        """Return what was incomplete, with U+FFFD for bytes that are no text; the last call."""
        ...


class TokenText:
    """Token ids to bytes and text; entries are made when first asked for.

    One object serves all requests of a model. Any thread may use it.

    Raises:
        BundleError: the tokenizer joins tokens in a way that is not known here.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        # The pickled state is the decoder's part of tokenizer.json, without the vocabulary.
        state = b"null" if tokenizer.decoder is None else tokenizer.decoder.__getstate__()
        self._rules = _rules_from_decoder(json.loads(state) or {"type": "nothing"})
        self._special_ids = {
            token_id
            for token_id, token in tokenizer.get_added_tokens_decoder().items()
            if token.special
        }
        self._pieces: dict[int, TokenPiece] = {}

    def to_bytes(self, token_id: int) -> bytes:
        """The exact bytes of a token: those of its content for a special token, none if unknown."""
        return self.piece(token_id).data

    def to_text(self, token_id: int) -> str:
        """The token as text, with U+FFFD for bytes that are not whole characters."""
        return self.piece(token_id).data.decode("utf-8", errors="replace")

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of tokens, control tokens included.

        Raises:
            InvalidRequestError: the tokenizer has no such token.
        """
        for token_id in token_ids:
            if not 0 <= token_id < 2**32 or self._tokenizer.id_to_token(token_id) is None:
                raise InvalidRequestError(
                    f"the tokenizer has no token {token_id}", param="prompt_token_ids"
                )
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=False)
        return text

    def logprob_entry(self, sampled: SampledToken) -> dict[str, Any]:
        """The log probability of one generated token as the OpenAI API writes it.

        Args:
            sampled: a token with `logprob`.

        Returns:
            `{"token", "bytes", "logprob", "top_logprobs": [{"token", "bytes", "logprob"}, ...]}`;
            log probabilities are natural logarithms, at least `LOGPROB_FLOOR`.
        """
        logprob = LOGPROB_FLOOR if sampled.logprob is None else sampled.logprob
        alternatives = sampled.top_logprobs or ()
        return self._entry(sampled.token_id, logprob) | {
            "top_logprobs": [self._entry(token_id, value) for token_id, value in alternatives]
        }

    def _entry(self, token_id: int, logprob: float) -> dict[str, Any]:
        return {
            "token": self.to_text(token_id),
            "bytes": list(self.to_bytes(token_id)),
            "logprob": finite_logprob(logprob),
        }

    def stream(self, *, skip_special_tokens: bool = True) -> TextStream:
        """A new stream that joins tokens as `tokenizer.decode(ids, skip_special_tokens=...)`."""
        if self._rules.byte_level:
            return _ByteLevelStream(self, skip_special_tokens)
        return _PieceStream(self, skip_special_tokens, self._rules)

    def piece(self, token_id: int) -> TokenPiece:
        """The token ready to join; for the streams of this module."""
        piece = self._pieces.get(token_id)
        if piece is None:
            piece = self._pieces[token_id] = self._make_piece(token_id)
        return piece

    def first_token_text(self, token_id: int) -> str:
        """The text of a token that has one and is no byte, as the first one of a text."""
        if not self._rules.first_token_drops:
            return self.to_text(token_id)
        content = self._tokenizer.id_to_token(token_id) or ""
        return content.replace(self._rules.first_token_drops, "")

    def _make_piece(self, token_id: int) -> TokenPiece:
        content = self._tokenizer.id_to_token(token_id)
        if content is None:
            return TokenPiece(b"", is_unknown=True)
        if token_id in self._special_ids:
            return TokenPiece(content.encode(), is_special=True)
        if self._rules.byte_level:
            try:
                return TokenPiece(bytes(_BYTE_OF_CHAR[char] for char in content))
            except KeyError:  # an added token, written as it is
                return TokenPiece(content.encode())
        for old, new in self._rules.replacements:
            content = content.replace(old, new)
        if self._rules.byte_fallback and (match := _BYTE_TOKEN.fullmatch(content)):
            return TokenPiece(bytes([int(match[1], 16)]), is_byte=True)
        return TokenPiece(content.encode())


class _ByteLevelStream:
    """Joins byte sequences; each maximal part of an invalid sequence becomes one U+FFFD."""

    def __init__(self, tokens: TokenText, skip_special_tokens: bool) -> None:
        self._tokens = tokens
        self._skips = skip_special_tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        piece = self._tokens.piece(token_id)
        return "" if piece.is_special and self._skips else self._decoder.decode(piece.data)

    def flush(self) -> str:
        return self._decoder.decode(b"", True)


class _PieceStream:
    """Joins texts and runs of single bytes.

    Whether a run of bytes is text is known at its end only, so the whole run is held back until
    another token comes.
    """

    def __init__(self, tokens: TokenText, skip_special_tokens: bool, rules: _JoinRules) -> None:
        self._tokens = tokens
        self._skips = skip_special_tokens
        self._run = bytearray()
        self._is_first = True
        self._strip_char = rules.strip_char
        self._num_to_strip = rules.max_stripped

    def push(self, token_id: int) -> str:
        piece = self._tokens.piece(token_id)
        if piece.is_unknown or (piece.is_special and self._skips):
            return ""
        is_first, self._is_first = self._is_first, False
        if piece.is_byte:
            self._run += piece.data
            return ""
        text = self._tokens.first_token_text(token_id) if is_first else piece.data.decode()
        return self._strip(self._end_run() + text)

    def flush(self) -> str:
        return self._strip(self._end_run())

    def _end_run(self) -> str:
        if not self._run:
            return ""
        try:
            text = self._run.decode()
        except UnicodeDecodeError:
            text = "\N{REPLACEMENT CHARACTER}" * len(self._run)
        self._run.clear()
        return text

    def _strip(self, text: str) -> str:
        while self._num_to_strip and text.startswith(self._strip_char):
            text = text[1:]
            self._num_to_strip -= 1
        if text:
            self._num_to_strip = 0
        return text
