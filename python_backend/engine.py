"""`Engine`: one step is schedule, run, sample, update. Single-threaded, no I/O, no mode."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from python_backend.detokenizer import Detokenizer
from python_backend.errors import InvalidRequestError
from python_backend.model_runner import ModelRunner
from python_backend.request import GenerationRequest, RequestOutput, Usage
from python_backend.sampler import SampledToken, Sampler, SamplerState
from python_backend.sampling_params import SamplingParams
from python_backend.scheduler import Choice, FinishReason, Request, Scheduler, StepPlan
from python_backend.token_text import TokenText


class _ChoiceState:
    """What a choice needs beside its cache row: randomness, penalties, text."""

    def __init__(self, sampler: SamplerState, detokenizer: Detokenizer) -> None:
        self.sampler = sampler
        self.detokenizer = detokenizer


class Engine:
    """Generates for many requests at once; they join and leave between steps.

    Args:
        scheduler: decides what each step computes.
        runner: computes it.
        token_text: the model's tokens as text.
        eos_token_ids: tokens that end an answer.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: ModelRunner,
        token_text: TokenText,
        eos_token_ids: Iterable[int],
    ) -> None:
        self.scheduler = scheduler
        self._runner = runner
        self._token_text = token_text
        self._eos_token_ids = frozenset(eos_token_ids)
        self._sampler = Sampler()
        self._plan: StepPlan | None = None
        self._states: dict[Choice, _ChoiceState] = {}
        self._image_tokens: dict[str, int] = {}

    @property
    def has_unfinished(self) -> bool:
        """Whether `step` has anything to do."""
        return self.scheduler.has_unfinished

    def add_request(self, request: GenerationRequest) -> None:
        """Queue a request.

        Raises:
            PromptTooLongError: it does not fit the context.
            InvalidRequestError: its parameters or embeddings do not fit the model.
            OverloadedError: too many requests wait already.
        """
        params, prompt = request.params, request.prompt
        num_prompt, num_image_tokens = len(prompt.token_ids), int((prompt.image_index >= 0).sum())
        if request.image_embeds.shape != (num_image_tokens, self._runner.hidden_size):
            raise InvalidRequestError(
                f"image_embeds has shape {request.image_embeds.shape}, the prompt has "
                f"{num_image_tokens} image tokens of size {self._runner.hidden_size}",
                param="image_embeds",
            )
        room = self.scheduler.max_output_tokens(num_prompt)
        scheduled = Request(
            request.request_id,
            num_prompt,
            room if params.max_tokens is None else params.max_tokens,
            self._stop_token_ids(params),
            params.n,
        )
        states = [self._new_state(request, choice) for choice in scheduled.choices]
        self.scheduler.add_request(scheduled)
        self._runner.add(request)
        self._states.update(zip(scheduled.choices, states, strict=True))
        self._image_tokens[request.request_id] = num_image_tokens

    def _stop_token_ids(self, params: SamplingParams) -> frozenset[int]:
        eos = frozenset() if params.ignore_eos else self._eos_token_ids
        return eos | frozenset(params.stop_token_ids)

    def _new_state(self, request: GenerationRequest, choice: Choice) -> _ChoiceState:
        sampler = SamplerState(
            request.params,
            request.prompt.token_ids,
            self._runner.vocab_size,
            choice.index,
            self._eos_token_ids,
        )
        return _ChoiceState(sampler, Detokenizer(self._token_text, request.params))

    def abort(self, request_id: str) -> bool:
        """Drop a request; its slots are free at the next step. False if it is not here."""
        request = self.scheduler.abort(request_id)
        if request is None:
            return False
        self._forget(request)
        return True

    def abort_step(self) -> list[str]:
        """Drop the requests of a step that raised; their ids."""
        if self._plan is None:
            return []
        requests = [self._plan.request, *(choice.request for choice in self._plan.choices)]
        request_ids = dict.fromkeys(r.request_id for r in requests if r is not None)
        return [request_id for request_id in request_ids if self.abort(request_id)]

    def step(self) -> list[RequestOutput]:
        """Compute one chunk of a prompt, or one token of every running choice; what is new of it."""
        plan = self._plan = self.scheduler.schedule()
        if plan is None:
            return []
        tokens = self._sample(plan, self._runner.run(plan))
        self.scheduler.update(plan, [token.token_id for token in tokens])
        return [self._output(c, token) for c, token in zip(plan.choices, tokens, strict=True)]

    def _sample(self, plan: StepPlan, logits: np.ndarray) -> list[SampledToken]:
        if not plan.choices:
            return []
        states = [self._states[choice].sampler for choice in plan.choices]
        tokens = self._sampler.sample(logits, states)
        for choice, state, token in zip(plan.choices, states, tokens, strict=True):
            state.append(token.token_id)
            self._runner.append(choice, token.token_id)
        return tokens

    def _output(self, choice: Choice, token: SampledToken) -> RequestOutput:
        request, state = choice.request, self._states[choice]
        matched: int | str | None = None
        if choice.finish_reason is FinishReason.STOP:
            matched = token.token_id  # a control token, or one the caller does not want to see
            text = ""
        else:
            delta = state.detokenizer.append([token.token_id])
            text, matched = delta.text, delta.matched_stop
        if choice.finish_reason is not None and matched is None or isinstance(matched, int):
            text += state.detokenizer.finish()
            matched = state.detokenizer.matched_stop or matched
        if isinstance(matched, str):
            self.scheduler.finish(choice, FinishReason.STOP)
        usage = self._usage(choice) if choice.finish_reason is not None else None
        wants_logprobs = state.sampler.params.logprobs is not None
        output = RequestOutput(
            request.request_id,
            choice.index,
            text,
            [token.token_id],
            [self._token_text.logprob_entry(token)] if wants_logprobs else None,
            None if choice.finish_reason is None else str(choice.finish_reason),
            matched,
            usage,
            request.is_finished,
        )
        if request.is_finished:
            self._forget(request)
        return output

    def _usage(self, choice: Choice) -> Usage:
        request = choice.request
        return Usage(
            request.num_prompt_tokens,
            choice.num_output_tokens,
            self._image_tokens[request.request_id],
        )

    def _forget(self, request: Request) -> None:
        self._runner.remove(request.request_id)
        self._image_tokens.pop(request.request_id, None)
        for choice in request.choices:
            self._states.pop(choice, None)

    def close(self) -> None:
        """Free the engine."""
        self._runner.close()
