"""A `StepPlan` to logits: feeds the decoder graph and owns the KV cache.

Dimension letters: B rows, S tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from python_backend import tensor_names as names
from python_backend.arrays import Array
from python_backend.choices import Choice
from python_backend.errors import InvalidRequestError
from python_backend.image_inputs import image_inputs
from python_backend.kv_cache import KVCache
from python_backend.prompt_logprobs import scored_tokens
from python_backend.request import GenerationRequest
from python_backend.runtimes.base import EngineRuntime
from python_backend.scheduler import StepPlan


class RunnerRequest:
    """The tensors of one request while it is in the engine.

    Attributes:
        image_embeds: [I, hidden_size], until the whole prompt is in the cache; None from then on.
        next_position: position of the first generated token.
        last_tokens: per choice, the token that is fed at its next step.
        scores_prompt: whether logits are wanted for the tokens of the prompt too.
    """

    def __init__(self, request: GenerationRequest) -> None:
        self.prompt = request.prompt
        self.image_embeds: Array | None = request.image_embeds
        self.next_position = int(request.prompt.position_ids.max()) + 1
        self.last_tokens = [0] * request.params.n
        self.scores_prompt = request.params.prompt_logprobs is not None


class ModelRunner:
    """Runs steps on one engine. Owned by the engine thread.

    Args:
        runtime: the decoder graph.
        num_rows: slots of the scheduler.
        cross_attention: the graph that fills the images' part of the cache, if there is one.

    Attributes:
        prompt_logits: float32 [N, V] before each of the last step's `scored_tokens`, if they were asked for;
            valid until the next run.
    """

    def __init__(
        self, runtime: EngineRuntime, num_rows: int, cross_attention: EngineRuntime | None = None
    ) -> None:
        self._runtime, self._cross_attention = runtime, cross_attention
        spec = runtime.spec
        self._cache = KVCache(spec, num_rows, runtime.zeros, runtime.min_rows)
        self._images = image_inputs(runtime, self._cache, cross_attention)
        self.vocab_size = int(spec.output("logits").shape[2])
        self._num_token_ids = spec.num_token_ids or self.vocab_size
        self._has_axes = len(spec.input("position_ids").shape) == 3
        self._requests: dict[str, RunnerRequest] = {}
        self.prompt_logits: Array | None = None

    @property
    def cache_bytes(self) -> int:
        """Size of the KV cache when every row is full."""
        return self._cache.num_bytes

    @property
    def array_module(self) -> Any:
        """The module of the logits' arrays: NumPy, or CuPy."""
        return self._runtime.array_module

    @property
    def gives_many_logits(self) -> bool:
        """Whether the graph's engine gives the logits that `prompt_logits` and drafts need."""
        return self._runtime.gives_many_logits

    @property
    def is_asynchronous(self) -> bool:
        """Whether `run` returns before the logits are computed; who reads them waits."""
        return self._runtime.is_asynchronous

    @property
    def takes_whole_images(self) -> bool:
        """Whether an image's tokens must be computed in one step."""
        return self._runtime.spec.takes_whole_images

    def check(self, request: GenerationRequest) -> None:
        """Raise `InvalidRequestError` unless a request's tensors fit the graph and one another.

        Whoever speaks to the decoder directly could otherwise fail a step with them.
        """
        prompt, num_tokens = request.prompt, request.prompt.token_ids.size
        num_axes = self._runtime.spec.input("position_ids").shape[0] if self._has_axes else 1
        for name, array, shape in (
            (names.PROMPT_TOKEN_IDS, prompt.token_ids, (num_tokens,)),
            (names.IMAGE_INDEX, prompt.image_index, (num_tokens,)),
            (names.POSITION_IDS, prompt.position_ids, (num_axes, num_tokens)),
        ):
            if array.dtype != "int64" or array.shape != shape or num_tokens == 0:
                raise InvalidRequestError(
                    f"{name} is {array.dtype} {list(array.shape)}; a prompt of {num_tokens} tokens needs "
                    f"int64 {list(shape)} and at least one token",
                    param=name,
                )
        self._images.check(prompt, request.image_embeds)
        for name, array, lowest, end in (
            (names.PROMPT_TOKEN_IDS, prompt.token_ids, 0, self._num_token_ids),
            (names.IMAGE_INDEX, prompt.image_index, -1, prompt.num_image_tokens),
        ):
            if array.min() < lowest or array.max() >= end:
                raise InvalidRequestError(
                    f"{name} has values from {array.min()} to {array.max()}; they must be from "
                    f"{lowest} to {end - 1}",
                    param=name,
                )
        lengths = [image.num_tokens for image in prompt.images]
        if min(lengths, default=1) < 1 or sum(lengths) != prompt.num_image_tokens:
            raise InvalidRequestError(
                f"{names.IMAGE_LENGTHS} is {lengths}; the prompt has {prompt.num_image_tokens} image tokens, "
                "and each image has at least one of them",
                param=names.IMAGE_LENGTHS,
            )

    def add(self, request: GenerationRequest) -> None:
        """Take the tensors of a request that passed `check`."""
        self._requests[request.request_id] = RunnerRequest(request)

    def remove(self, request_id: str) -> None:
        """Let go of a request's tensors; its cache rows are the scheduler's business."""
        self._requests.pop(request_id, None)

    def append(self, choice: Choice, token_id: int) -> None:
        """Record the sampled token, which is fed at the choice's next step."""
        self._requests[choice.request.request_id].last_tokens[choice.index] = token_id

    def run(self, plan: StepPlan, drafts: Sequence[Sequence[int]]) -> Array:
        """Compute a step.

        Args:
            plan: what to compute.
            drafts: of a decode step, tokens behind the next one of each choice, as guesses. There is room for
                the longest of them in every row: where a draft is shorter, the row is written all the same.

        Returns:
            float32 [len(plan.choices), L, V], where the graph computes: logits of each choice's next token,
            and of those behind each token of the longest draft. Valid until the next run.
        """
        for copy in plan.copies:
            self._cache.copy_row(copy.source, copy.target, copy.num_tokens, copy.num_back)
        if plan.kind == "decode":
            return self._decode(plan.choices, drafts)
        logits = self._prefill(plan)
        # All choices of a request start from the same distribution.
        return self.array_module.repeat(logits[None], len(plan.choices), axis=0)

    def _prefill(self, plan: StepPlan) -> Array:
        assert plan.request is not None
        request, slot = self._requests[plan.request.request_id], plan.slot
        start, stop = plan.start, plan.start + plan.num_scheduled_tokens
        prompt = request.prompt
        assert request.image_embeds is not None  # the prompt is computed once
        # Moved by the first chunk only.
        embeds = request.image_embeds = self.array_module.asarray(request.image_embeds)
        wanted = np.array([stop - 1])
        if request.scores_prompt:
            wanted = np.concatenate([scored_tokens(prompt, start, stop) - 1, wanted])
        feeds = {
            "input_ids": prompt.token_ids[None, start:stop],
            "position_ids": self._positions(prompt.position_ids[:, None, start:stop]),
            "write_indices": np.array([start]),
            "kv_lengths": np.array([stop], np.int32),
            "logits_index": wanted[None] - start,
            **self._images.prefill(slot, prompt, embeds, start, stop),
        }
        logits = self._runtime.run(feeds, self._cache.view(slot, slot + 1))["logits"][0]
        if stop == len(prompt.token_ids):
            request.image_embeds = None  # the cache holds all that they were needed for
        self.prompt_logits = logits[:-1] if request.scores_prompt else None
        return logits[-1:]

    def _decode(self, choices: tuple[Choice, ...], drafts: Sequence[Sequence[int]]) -> Array:
        num_rows, num_tokens = len(choices), 1 + max(map(len, drafts))
        rows = [self._requests[choice.request.request_id] for choice in choices]
        # A row's tokens behind its draft are nobody's: what they write is written again before it is read.
        input_ids = np.zeros((num_rows, num_tokens), np.int64)
        for ids, row, choice, draft in zip(input_ids, rows, choices, drafts, strict=True):
            ids[: 1 + len(draft)] = [row.last_tokens[choice.index], *draft]
        starts = np.array([choice.num_computed_tokens for choice in choices])
        positions = np.array(
            [
                row.next_position + c.num_output_tokens - 1
                for row, c in zip(rows, choices, strict=True)
            ]
        )
        places = np.arange(num_tokens)
        num_axes = rows[0].prompt.position_ids.shape[0]
        feeds = {
            "input_ids": input_ids,
            "position_ids": self._positions(
                np.broadcast_to(positions[:, None] + places, (num_axes, num_rows, num_tokens))
            ),
            "write_indices": starts,
            "kv_lengths": (starts + num_tokens).astype(np.int32),
            "logits_index": np.tile(places, (num_rows, 1)),
            **self._images.decode([row.prompt for row in rows], num_tokens),
        }
        return self._runtime.run(feeds, self._cache.view(0, num_rows))["logits"]

    def _positions(self, positions: np.ndarray) -> np.ndarray:
        """[axes, B, S] as the graph takes it: without the axis if it has only one."""
        return np.ascontiguousarray(positions if self._has_axes else positions[0])

    def close(self) -> None:
        """Free the engine."""
        self._runtime.close()
        if self._cross_attention is not None:
            self._cross_attention.close()
