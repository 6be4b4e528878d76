"""`Engine`: one step is schedule, run, sample, update. Single-threaded, no I/O, no mode.

Where a device computes by itself, the next step is launched as soon as the tokens of the last one are known,
and computes while their texts are made.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from python_backend.answer_text import AnswerText
from python_backend.arrays import Array
from python_backend.choices import Choice, FinishReason, Request
from python_backend.errors import InvalidRequestError
from python_backend.families.base import PreparedPrompt
from python_backend.model_runner import ModelRunner
from python_backend.prompt_key import PromptKey
from python_backend.prompt_logprobs import MAX_CHUNK_TOKENS, prompt_logprobs
from python_backend.prompt_lookup import PromptLookup, propose
from python_backend.reasoning import Reasoning, ReasoningTokens
from python_backend.request import GenerationRequest, RequestFailure, RequestOutput, Usage
from python_backend.sampler import Sampler
from python_backend.sampler_state import SampledToken, SamplerState
from python_backend.sampling_params import SamplingParams
from python_backend.scheduler import Scheduler, StepKind, StepPlan
from python_backend.timing import Stopwatch, Timing
from python_backend.token_text import TokenText

_MIN_DRAFT_TOKENS = 2
"""Of a choice in a step: its next token and one that is guessed."""


@dataclass(slots=True)
class _ChoiceState:
    """What a choice needs beside its cache row: randomness, penalties, texts, drafts."""

    sampler: SamplerState
    text: AnswerText
    lookup: PromptLookup | None


@dataclass(slots=True)
class _RequestState:
    """The prompt, what is asked of it, choices whose last output is still to come, and the times."""

    prompt: PreparedPrompt
    params: SamplingParams
    num_open_choices: int
    stopwatch: Stopwatch = field(default_factory=Stopwatch)


@dataclass(frozen=True, slots=True)
class _Launched:
    """A step that computes, or could not be started."""

    plan: StepPlan
    logits: Array | None = None
    error: Exception | None = None


@dataclass(slots=True)
class StepCounts:
    """What all steps of a kind came to.

    Attributes:
        num_steps: that computed something and did not raise.
        num_tokens: computed: of prompts, or one per row.
        seconds: they took, sampling and text included.
    """

    num_steps: int = 0
    num_tokens: int = 0
    seconds: float = 0.0


def image_ranges(image_index: np.ndarray) -> tuple[tuple[int, int], ...]:
    """(first token, token after the last) of every run of image tokens in `image_index` [S]."""
    is_image = np.concatenate([[False], image_index >= 0, [False]])
    edges = np.flatnonzero(is_image[1:] != is_image[:-1]).tolist()
    return tuple(zip(edges[::2], edges[1::2], strict=True))


class Engine:
    """Generates for many requests at once; they join and leave between steps.

    Args:
        scheduler: decides what each step computes.
        runner: computes it.
        token_text: the model's tokens as text.
        eos_token_ids: tokens that end an answer.
        reasoning_tokens: tokens around the model's reasoning, if it has any.
        video_token_id: the token that stands for an embedding of a video, if the model takes any.
        prefix_cache: whether prompts take over what rows hold of earlier ones that begin alike.
        max_draft_tokens: tokens that a decode step with drafts may compute, the next one of each choice and
            padding included; 0 for no drafts, and unless the runner `gives_many_logits`.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: ModelRunner,
        token_text: TokenText,
        eos_token_ids: Iterable[int],
        reasoning_tokens: ReasoningTokens | None = None,
        *,
        video_token_id: int | None = None,
        prefix_cache: bool = True,
        max_draft_tokens: int = 0,
    ) -> None:
        self.scheduler = scheduler
        self._runner = runner
        self.token_text = token_text
        self._eos_token_ids = frozenset(eos_token_ids)
        self._video_token_id = video_token_id
        self._prefix_cache = prefix_cache
        self._max_draft_tokens = max_draft_tokens
        self._reasoning_tokens = reasoning_tokens
        self._sampler = Sampler(runner.array_module)
        self._plan: StepPlan | None = None
        self._launched: _Launched | None = None
        self._states: dict[Choice, _ChoiceState] = {}
        self._requests: dict[str, _RequestState] = {}
        self.step_counts: dict[StepKind, StepCounts] = {
            "prefill": StepCounts(),
            "decode": StepCounts(),
        }

    @property
    def has_unfinished(self) -> bool:
        """Whether `step` has anything to do."""
        return self.scheduler.has_unfinished

    def add_request(self, request: GenerationRequest) -> None:
        """Queue a request.

        Raises:
            PromptTooLongError: it does not fit the context.
            InvalidRequestError: its parameters or tensors do not fit the model.
            OverloadedError: too many requests wait already.
        """
        self._runner.check(request)
        if request.params.prompt_logprobs is not None and not self._runner.gives_many_logits:
            raise InvalidRequestError(
                "this model's engine gives no log probabilities of prompt tokens: leave "
                "prompt_logprobs out, or ask a model that ONNX Runtime serves",
                param="prompt_logprobs",
            )
        params, prompt = request.params, request.prompt
        num_prompt = len(prompt.token_ids)
        room = self.scheduler.max_output_tokens(num_prompt)
        scheduled = Request(
            request.request_id,
            num_prompt,
            room if params.max_tokens is None else params.max_tokens,
            self._stop_token_ids(params),
            params.n,
            image_ranges(prompt.image_index) if self._runner.takes_whole_images else (),
            key=self._prompt_key(request),
            priority=params.priority,
            caller=params.caller,
            max_chunk_tokens=None if params.prompt_logprobs is None else MAX_CHUNK_TOKENS,
        )
        states = [self._new_state(request, choice) for choice in scheduled.choices]
        self.scheduler.add_request(scheduled)
        self._runner.add(request)
        self._states.update(zip(scheduled.choices, states, strict=True))
        self._requests[request.request_id] = _RequestState(prompt, params, params.n)

    def _prompt_key(self, request: GenerationRequest) -> PromptKey | None:
        """What the prompt is compared with others by; None if every token of it must be computed."""
        if not self._prefix_cache or request.params.prompt_logprobs is not None:
            return None
        return PromptKey(request.prompt, request.params.cache_salt)

    def _stop_token_ids(self, params: SamplingParams) -> frozenset[int]:
        eos = frozenset() if params.ignore_eos else self._eos_token_ids
        return eos | frozenset(params.stop_token_ids)

    def _new_state(self, request: GenerationRequest, choice: Choice) -> _ChoiceState:
        prompt = request.prompt.token_ids.tolist()
        reasoning = None
        if self._reasoning_tokens is not None and request.params.separate_reasoning:
            reasoning = Reasoning(self._reasoning_tokens, prompt)
        sampler = SamplerState(
            request.params,
            prompt,
            self._runner.vocab_size,
            choice.index,
            self._eos_token_ids,
            self._runner.array_module,
            None if request.constraint is None else request.constraint.copy(),
            reasoning,
        )
        return _ChoiceState(
            sampler,
            AnswerText(self.token_text, request.params, reasoning),
            self._new_lookup(request.prompt, choice.request.max_tokens),
        )

    def _new_lookup(self, prompt: PreparedPrompt, max_tokens: int) -> PromptLookup | None:
        """What guesses for a choice; None where no step has room for a guess."""
        if self._max_draft_tokens < _MIN_DRAFT_TOKENS:
            return None
        token_ids = prompt.token_ids
        # Neither can be in an answer: tokens that stand for images, and those that have no logit.
        is_other = (prompt.image_index >= 0) | (token_ids >= self._runner.vocab_size)
        unlike_all = -1 - np.arange(len(token_ids))
        return PromptLookup(np.where(is_other, unlike_all, token_ids), max_tokens)

    def abort(self, request_id: str) -> bool:
        """Drop a request; its slots are free at the next step. False if it is not here."""
        request = self.scheduler.abort(request_id)
        if request is None:
            return False
        self._forget(request)
        return True

    def abort_step(self) -> list[str]:
        """Drop the requests of a step that raised; their ids, and those that it ended before it raised."""
        if self._plan is None:
            return []
        requests = self.scheduler.abort_step(self._plan)
        for request in requests:
            self._forget(request)
        computed = [choice.request for choice in self._plan.choices]
        return list(dict.fromkeys(request.request_id for request in [*requests, *computed]))

    def step(self) -> list[RequestOutput | RequestFailure]:
        """Compute one chunk of a prompt, or the next token of every running choice; what is new of it.

        Of a choice whose tokens were guessed, several may be new. A request whose grammar can no longer be
        followed fails alone.
        """
        started = time.perf_counter()
        launched, self._launched = self._launched or self._launch(), None
        if launched is None:
            return []
        plan = self._plan = launched.plan
        if launched.error is not None:
            raise launched.error
        self.scheduler.update(plan)
        outputs = [*self._prompt_outputs(plan), *self._answers(plan.choices, launched.logits)]
        counts = self.step_counts[plan.kind]
        counts.num_steps += 1
        counts.num_tokens += plan.num_scheduled_tokens
        counts.seconds += time.perf_counter() - started
        return outputs

    def _launch(self) -> _Launched | None:
        plan = self.scheduler.schedule()
        if plan is None:
            return None
        if plan.request is not None:
            self._requests[plan.request.request_id].stopwatch.start()
        try:
            return _Launched(plan, self._runner.run(plan, self._drafts(plan)))
        except Exception as error:
            # Requests of the last step, whose texts are still to be made, have nothing to do with it.
            return _Launched(plan, error=error)

    def _drafts(self, plan: StepPlan) -> list[list[int]]:
        """Guesses of what follows the next token of each choice; none where they would not pay."""
        choices = plan.choices
        if plan.kind != "decode" or _MIN_DRAFT_TOKENS * len(choices) > self._max_draft_tokens:
            return [[] for _ in choices]
        # Every row is written as far as the longest draft.
        longest_row = max(choice.num_computed_tokens for choice in choices)
        room = self.scheduler.max_model_len - longest_row - 1
        max_length = min(room, self._max_draft_tokens // len(choices) - 1)
        lookups = [lookup for c in choices if (lookup := self._states[c].lookup) is not None]
        # Behind the last token that it may have no choice needs logits.
        return propose(lookups, [min(max_length, c.num_tokens_left - 1) for c in choices])

    def _answers(
        self, choices: Sequence[Choice], logits: Array
    ) -> list[RequestOutput | RequestFailure]:
        """What the logits [R, L, V] of a step make of its choices.

        Each token is chosen as if it were the only one of the step. Where it is the one that was guessed, the
        logits behind the guess are those that the next step would have computed, and the choice goes on.
        """
        outputs: dict[Choice, RequestOutput] = {}
        failures = []
        # Since their step was launched, some may have been aborted or ended by their text.
        rows = [row for row, choice in enumerate(choices) if choice.finish_reason is None]
        place = 0
        while rows:
            of_place = logits[:, place] if len(rows) == len(choices) else logits[rows, place]
            tokens, were_guessed = self._sample([choices[row] for row in rows], of_place)
            if self._runner.is_asynchronous and not any(were_guessed):
                self._launched = self._launch()
            for row, token in zip(rows, tokens, strict=True):
                choice = choices[row]
                state = self._states.get(choice)
                if state is None:  # its request has just failed
                    continue
                constraint = state.sampler.constraint
                if constraint is not None and constraint.error:
                    failures.append(self._fail(choice, constraint.error))
                    continue
                output = self._output(choice, token)
                # Its place is that of its last token: what ends a request stays behind its other choices.
                earlier = outputs.pop(choice, None)
                outputs[choice] = earlier.merge(output) if earlier else output
            rows = [
                row
                for row, was_guessed in zip(rows, were_guessed, strict=True)
                if was_guessed and choices[row].finish_reason is None
            ]
            place += 1
        return [*outputs.values(), *failures]

    def _prompt_outputs(self, plan: StepPlan) -> list[RequestOutput]:
        """What a step tells of a prompt whose log probabilities are asked for."""
        logits = self._runner.prompt_logits
        if plan.request is None or logits is None:
            return []
        request_id, stop = plan.request.request_id, plan.start + plan.num_scheduled_tokens
        prompt, params = self._requests[request_id].prompt, self._requests[request_id].params
        assert params.prompt_logprobs is not None
        entries = prompt_logprobs(
            prompt, plan.start, stop, logits, params.prompt_logprobs, self.token_text
        )
        return [RequestOutput(request_id, 0, "", [], prompt_logprobs=entries)]

    def _fail(self, choice: Choice, reason: str) -> RequestFailure:
        request_id = choice.request.request_id
        self.abort(request_id)
        error = InvalidRequestError(
            f"the grammar became too large while the answer was generated ({reason}); simplify it",
            param="grammar",
        )
        return RequestFailure(request_id, error)

    def _sample(
        self, choices: Sequence[Choice], logits: Array
    ) -> tuple[list[SampledToken], list[bool]]:
        """The next token of each choice, and whether it was guessed."""
        states = [self._states[choice] for choice in choices]
        tokens = self._sampler.sample(logits, [state.sampler for state in states])
        were_guessed = []
        for choice, state, token in zip(choices, states, tokens, strict=True):
            state.sampler.append(token.token_id)
            were_guessed.append(state.lookup is not None and state.lookup.append(token.token_id))
            self._runner.append(choice, token.token_id)
            self.scheduler.append(choice, token.token_id)
        return tokens, were_guessed

    def _output(self, choice: Choice, token: SampledToken) -> RequestOutput:
        state = self._states[choice]
        is_stop_token = choice.finish_reason is FinishReason.STOP
        text, reasoning = state.text.append(token.token_id, choice.finish_reason)
        matched_stop = state.text.matched_stop
        if matched_stop is not None:  # the scheduler would go on
            self.scheduler.finish(choice, FinishReason.STOP)
        wants_logprobs = state.sampler.params.logprobs is not None
        logprobs = [self.token_text.logprob_entry(token)] if wants_logprobs else None
        output = RequestOutput(
            choice.request.request_id,
            choice.index,
            text,
            [token.token_id],
            logprobs,
            reasoning=reasoning,
        )
        if choice.num_output_tokens == 1:
            output = self._first_output(choice, output)
        if choice.finish_reason is None:
            return output
        usage, timing = self._usage(choice), self._timing(choice.request)
        is_last = self._close_choice(choice)
        return replace(
            output,
            finish_reason=str(choice.finish_reason),
            matched_stop=token.token_id if matched_stop is None and is_stop_token else matched_stop,
            usage=usage,
            is_last=is_last,
            timing=timing if is_last else None,
        )

    def _first_output(self, choice: Choice, output: RequestOutput) -> RequestOutput:
        request = self._requests[choice.request.request_id]
        request.stopwatch.first_token()
        token_ids = None
        if choice.index == 0 and request.params.return_token_ids:
            token_ids = request.prompt.token_ids.tolist()
        return replace(output, usage=self._usage(choice), prompt_token_ids=token_ids)

    def _close_choice(self, choice: Choice) -> bool:
        """Count a choice's last output; True if it was its request's last, which is then forgotten."""
        request = self._requests[choice.request.request_id]
        request.num_open_choices -= 1
        if request.num_open_choices:
            return False
        self._forget(choice.request)
        return True

    def _usage(self, choice: Choice) -> Usage:
        request = choice.request
        state = self._states[choice]
        reasoning, lookup = state.sampler.reasoning, state.lookup
        prompt = self._requests[request.request_id].prompt
        video_tokens = int((prompt.token_ids == self._video_token_id).sum())
        return Usage(
            request.num_prompt_tokens,
            choice.num_output_tokens,
            prompt.num_image_tokens - video_tokens,
            request.num_cached_tokens,
            reasoning_tokens=0 if reasoning is None else reasoning.num_tokens,
            draft_tokens=0 if lookup is None else lookup.num_drafted,
            accepted_draft_tokens=0 if lookup is None else lookup.num_accepted,
            video_tokens=video_tokens,
        )

    def _timing(self, request: Request) -> Timing | None:
        state = self._requests[request.request_id]
        return state.stopwatch.timing() if state.params.return_timing else None

    def _forget(self, request: Request) -> None:
        self._runner.remove(request.request_id)
        self._requests.pop(request.request_id, None)
        for choice in request.choices:
            self._states.pop(choice, None)

    def close(self) -> None:
        """Free the engine."""
        self._runner.close()
