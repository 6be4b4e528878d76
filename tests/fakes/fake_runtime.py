"""A decoder without a graph: what it answers depends on every value in the cache row, and on no other."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from threading import Event

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from python_backend.engine import Engine
from python_backend.families.base import PreparedPrompt
from python_backend.kv_cache import CacheView
from python_backend.model_runner import ModelRunner
from python_backend.reasoning import ReasoningTokens
from python_backend.request import GenerationRequest
from python_backend.runtimes.base import EngineRuntime
from python_backend.sampling_params import SamplingParams
from python_backend.scheduler import Scheduler
from python_backend.spec import GraphSpec, TensorSpec
from python_backend.token_text import TokenText

EOS = 256
VOCAB_SIZE = 257
WRONG = ord("!")
HIDDEN_SIZE = 2

NextToken = Callable[[Sequence[int]], int]
"""From the tokens in a cache row to the most likely next one."""


def decoder_spec(max_model_len: int) -> GraphSpec:
    """The contract of a one-layer decoder with plain positions."""
    cache = ("B", 1, max_model_len, 1)
    return GraphSpec(
        "decoder",
        (
            TensorSpec("input_ids", "int64", ("B", "S")),
            TensorSpec("image_index", "int64", ("B", "S")),
            TensorSpec("image_embeds", "float32", ("I", HIDDEN_SIZE)),
            TensorSpec("position_ids", "int64", ("B", "S")),
            TensorSpec("write_indices", "int64", ("B",)),
            TensorSpec("kv_lengths", "int32", ("B",)),
            TensorSpec("logits_index", "int64", ("B", "L")),
            TensorSpec("past_key.0", "float32", cache),
            TensorSpec("past_value.0", "float32", cache),
        ),
        (
            TensorSpec("logits", "float32", ("B", "L", VOCAB_SIZE)),
            TensorSpec("present_key.0", "float32", cache),
            TensorSpec("present_value.0", "float32", cache),
        ),
        {"present_key.0": "past_key.0", "present_value.0": "past_value.0"},
    )


class FakeRuntime(EngineRuntime):
    """Keeps tokens in the key cache and positions in the value cache.

    Args:
        next_token: what follows the tokens of a row; None for logits made of a checksum of the row.
        max_model_len: capacity of a row.
        poison: a step that is fed this token raises.
        is_asynchronous: what it says of itself.

    Attributes:
        fed: the token ids of every call, [rows, tokens].
        positions: their positions, likewise.
        closed: set by `close`.
    """

    def __init__(
        self,
        next_token: NextToken | None = None,
        *,
        max_model_len: int = 96,
        poison: int | None = None,
        is_asynchronous: bool = False,
    ) -> None:
        super().__init__(decoder_spec(max_model_len))
        self._next_token, self._poison = next_token, poison
        self._is_asynchronous = is_asynchronous
        self.fed: list[list[list[int]]] = []
        self.positions: list[list[list[int]]] = []
        self.closed = Event()

    @property
    def is_asynchronous(self) -> bool:
        return self._is_asynchronous

    def _run(
        self, feeds: Mapping[str, np.ndarray], cache: CacheView | None
    ) -> dict[str, np.ndarray]:
        assert cache is not None
        ids, index = feeds["input_ids"], feeds["image_index"]
        self.fed.append(ids.tolist())
        self.positions.append(feeds["position_ids"].tolist())
        # An image token is known by its embedding alone.
        embeds = feeds["image_embeds"][np.maximum(index, 0), 0]
        values = np.where(index >= 0, embeds, ids)
        keys, positions = cache.tensors["past_key.0"], cache.tensors["past_value.0"]
        num_tokens = ids.shape[1]
        logits = np.empty((len(ids), feeds["logits_index"].shape[1], VOCAB_SIZE), np.float32)
        for row, start in enumerate(feeds["write_indices"]):
            stop = start + num_tokens
            assert feeds["kv_lengths"][row] == stop
            keys[row, 0, start:stop, 0] = values[row]
            positions[row, 0, start:stop, 0] = feeds["position_ids"][row]
            for column, last in enumerate(feeds["logits_index"][row]):
                end = start + int(last) + 1
                logits[row, column] = self._logits(keys[row, 0, :end], positions[row, 0, :end])
        if self._poison is not None and (ids == self._poison).any():
            raise RuntimeError("the engine is poisoned")
        return {"logits": logits}

    def _logits(self, tokens: np.ndarray, positions: np.ndarray) -> np.ndarray:
        if self._next_token is not None:
            logits = np.zeros(VOCAB_SIZE, np.float32)
            logits[self._next_token(tokens[:, 0].astype(int).tolist())] = 20
            return logits
        seed = zlib.crc32(positions.tobytes(), zlib.crc32(tokens.tobytes()))
        return np.random.default_rng(seed).normal(0, 2, VOCAB_SIZE).astype(np.float32)

    def close(self) -> None:
        self.closed.set()


def scripted(script: Mapping[str, str]) -> NextToken:
    """Answers each prompt with its text and then the end of the sequence, all else with `WRONG`."""

    def next_token(tokens: Sequence[int]) -> int:
        text = bytes(tokens)
        for prompt, answer in script.items():
            if text.startswith(prompt.encode()):
                rest = answer.encode()[len(text) - len(prompt.encode()) :]
                return rest[0] if rest else EOS
        return WRONG

    return next_token


def byte_tokenizer() -> Tokenizer:
    """One token per byte, and an end-of-sequence token."""
    chars = {chr(b): b for b in range(33, 127)} | {
        chr(b): b for b in [*range(161, 173), *range(174, 256)]
    }
    others = [b for b in range(256) if b not in chars.values()]
    chars |= {chr(256 + i): b for i, b in enumerate(others)}
    tokenizer = Tokenizer(models.BPE(vocab=chars, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<eos>"])
    return tokenizer


def fake_engine(
    runtime: FakeRuntime,
    *,
    max_num_seqs: int = 4,
    max_num_batched_tokens: int = 8,
    max_waiting: int = 64,
    reasoning_tokens: ReasoningTokens | None = None,
    prefix_cache: bool = True,
    max_draft_tokens: int = 0,
) -> Engine:
    """An engine around a fake runtime; everything else is real."""
    scheduler = Scheduler(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_model_len=int(runtime.spec.input("past_key.0").shape[2]),
        max_waiting=max_waiting,
    )
    runner = ModelRunner(runtime, max_num_seqs)
    text = TokenText(byte_tokenizer())
    return Engine(
        scheduler,
        runner,
        text,
        [EOS],
        reasoning_tokens,
        prefix_cache=prefix_cache,
        max_draft_tokens=max_draft_tokens,
    )


def fake_request(
    request_id: str, prompt: str | bytes, params: SamplingParams | None = None
) -> GenerationRequest:
    """A request without images whose tokens are the prompt's bytes."""
    data = prompt.encode() if isinstance(prompt, str) else prompt
    tokens = np.frombuffer(data, np.uint8).astype(np.int64)
    prepared = PreparedPrompt(
        tokens, np.full(len(tokens), -1, np.int64), np.arange(len(tokens), dtype=np.int64)[None]
    )
    embeds = np.empty((0, HIDDEN_SIZE), np.float32)
    return GenerationRequest(request_id, prepared, embeds, params or SamplingParams(temperature=0))
