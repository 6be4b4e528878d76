"""In-flight batching (also called continuous batching): which tokens are computed in each step.

Pure bookkeeping over integers: no tensor, thread, clock or I/O. Each step is either one chunk of
one prompt ("prefill") or the next token of every running choice ("decode"); the two alternate while both
have work, so a long prompt cannot stall the streams that run and the streams cannot starve a
prompt. A decode step that also computes tokens which were guessed may give a choice several tokens.

Of the prompts that wait, the one with least left to compute is first, and a longer one that is under way is
set aside for it between two chunks: it keeps its row, and goes on there behind it. Who waits for long is no
longer overtaken. Of several callers the one is next for whom fewest tokens were computed, so nobody's many
requests hold up another's few (the virtual token counters of Sheng et al., "Fairness in Serving Large
Language Models", OSDI 2024).

A running choice holds one slot, a row of the KV cache. Slots are kept compact:

    slot  0 .. n-1   running choices, in no particular order
    rest             free, but for those of the prompt that is computed and of others that were set aside

A decode step therefore covers a prefix of the rows, and whoever leaves changes places with the last one. What
free rows hold is kept for prompts that begin alike: see `prefix_cache`.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass
from typing import Literal

from python_backend.choices import Choice, FinishReason, Request
from python_backend.errors import InvalidRequestError, OverloadedError, PromptTooLongError
from python_backend.prefix_cache import PrefixCache, RowCopy

StepKind = Literal["prefill", "decode"]
"""A chunk of a prompt, or a token of every running choice."""

AGING = 0.125
"""Tokens that a prompt seems longer for each token of prompts computed before it came: one of 4,096 tokens is
overtaken only by those that come while 32,768 are computed. Measured in docs/performance.md."""


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Everything the model runner needs for one step.

    Attributes:
        kind: what is computed.
        copies: cache rows to copy or exchange first, in this order.
        choices: whose next token is sampled from this step's logits: of a decode step all that run,
            in slot order; of a prompt's last chunk the request's choices; else none.
        request: the request whose prompt is computed, None in a decode step.
        slot: its cache row.
        start: first prompt token to compute.
        num_scheduled_tokens: prompt tokens to compute, or one per choice.
    """

    kind: StepKind
    copies: tuple[RowCopy, ...]
    choices: tuple[Choice, ...]
    request: Request | None = None
    slot: int = 0
    start: int = 0
    num_scheduled_tokens: int = 0


class Scheduler:
    """Decides each step; holds every request from admission to its last token.

    Args:
        max_num_seqs: slots.
        max_num_batched_tokens: longest prefill chunk, but for parts that must be whole.
        max_model_len: capacity of a slot, prompt and output together.
        max_waiting: requests that may wait for a slot.
        aging: see `AGING`.
    """

    def __init__(
        self,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_model_len: int,
        max_waiting: int,
        aging: float = AGING,
    ) -> None:
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_model_len = max_model_len
        self.max_waiting = max_waiting
        self._aging = aging
        self._waiting: list[Request] = []
        self._running: list[Choice] = []
        self._rows: PrefixCache[Choice] = PrefixCache(max_num_seqs)
        self._prefilling: Request | None = None
        self._prefill_slot = 0
        # Their prompt has just been computed in the prefill slot; they have no slots of their own yet.
        self._fresh: list[Choice] = []
        self._last_kind: StepKind = "decode"
        self._num_prefilled_tokens = 0
        # Tokens computed for each caller who is there, and for the last one who was admitted.
        self._num_tokens_for: dict[str | None, int] = {}
        self._num_tokens_for_last = 0

    # --- what is there -------------------------------------------------------------------------

    @property
    def num_waiting(self) -> int:
        """Requests that have no slot yet."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Slots in use."""
        running = sum(choice.finish_reason is None for choice in (*self._running, *self._fresh))
        return running + (self._prefilling is not None)

    @property
    def has_unfinished(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._waiting) or self.num_running > 0

    def max_output_tokens(self, num_prompt_tokens: int) -> int:
        """Output tokens that fit behind a prompt."""
        return self.max_model_len - num_prompt_tokens

    # --- coming and going ----------------------------------------------------------------------

    def add_request(self, request: Request) -> None:
        """Queue a request, before those with a higher `priority` and, with the same, longer prompts.

        Raises:
            PromptTooLongError: prompt, or prompt and output, exceed `max_model_len`.
            InvalidRequestError: it asks for more choices than there are slots.
            OverloadedError: the queue is full.
        """
        num_prompt, limit = request.num_prompt_tokens, self.max_model_len
        if num_prompt >= limit:
            raise PromptTooLongError(
                f"This model's maximum context length is {limit} tokens. However, your messages "
                f"resulted in {num_prompt} tokens and at least one is needed for the answer. Please "
                "reduce the length of the messages or send fewer or smaller images.",
                param="messages",
            )
        if request.max_tokens > self.max_output_tokens(num_prompt):
            raise InvalidRequestError(
                f"max_tokens is too large: {request.max_tokens}. The prompt has {num_prompt} tokens, "
                f"so at most {self.max_output_tokens(num_prompt)} fit in the context of {limit}.",
                param="max_tokens",
            )
        if request.num_choices > self.max_num_seqs:
            raise InvalidRequestError(
                f"n is {request.num_choices}; this engine generates at most {self.max_num_seqs} "
                "choices at once",
                param="n",
            )
        if len(self._waiting) >= self.max_waiting:
            raise OverloadedError(
                f"the server has {len(self._waiting)} requests waiting, which is its limit; retry later"
            )
        self._count_in(request.caller)
        request.arrival = self._num_prefilled_tokens
        prefix = self._rows.find(request.num_common_tokens, len(self._running))
        self._enqueue(request, request.num_prompt_tokens - prefix.num_tokens)

    def _count_in(self, caller: str | None) -> None:
        """Nobody saves up turns: who comes to the queue counts as much as the one there who has least."""
        there = {request.caller for request in self._requests()}
        counts = {other: self._num_tokens_for[other] for other in there}
        queue = {request.caller for request in self._waiting}
        if caller not in queue:
            least = min((counts[other] for other in queue), default=self._num_tokens_for_last)
            counts[caller] = max(counts.get(caller, 0), least)
        self._num_tokens_for = counts

    def _enqueue(self, request: Request, num_tokens_left: int) -> None:
        request.rank = self._rank(request, num_tokens_left)
        insort(self._waiting, request, key=lambda waiting: waiting.rank)

    def _rank(self, request: Request, num_tokens_left: int) -> tuple[int, float]:
        return request.priority, num_tokens_left + self._aging * request.arrival

    def abort(self, request_id: str) -> Request | None:
        """Drop a request wherever it is; its slots are free at the next step. None if unknown."""
        for request in self._requests():
            if request.request_id == request_id:
                for choice in request.choices:
                    if choice.finish_reason is None:
                        self.finish(choice, FinishReason.CANCELLED)
                if request in self._waiting:
                    self._waiting.remove(request)
                if request is self._prefilling:
                    self._prefilling = None
                    self._release(self._prefill_slot)
                return request
        return None

    def abort_step(self, plan: StepPlan) -> list[Request]:
        """Drop the requests of a step that raised: those it computes, and those whose rows it moves.

        Any row may be half written now, so what free rows hold is given up.
        """
        slots = [slot for copy in plan.copies for slot in (copy.source, copy.target)]
        choices = [*plan.choices, *(self._rows[slot] for slot in slots)]
        requests = [plan.request, *(choice.request for choice in choices if choice is not None)]
        aborted = [self.abort(r.request_id) for r in dict.fromkeys(requests) if r is not None]
        self._rows.keep_only(lambda choice: choice.finish_reason is None)
        return [request for request in aborted if request is not None]

    def finish(self, choice: Choice, reason: FinishReason) -> None:
        """End a choice; its slot is free at the next step."""
        choice.finish_reason = reason

    def _requests(self) -> list[Request]:
        """Every request with an unfinished choice."""
        held = [choice.request for choice in (*self._running, *self._fresh)]
        if self._prefilling is not None:
            held.append(self._prefilling)
        return [r for r in dict.fromkeys([*held, *self._waiting]) if not r.is_finished]

    # --- one step ------------------------------------------------------------------------------

    def schedule(self) -> StepPlan | None:
        """The next step; None when there is nothing to do.

        1. close the holes that finished choices left, give slots to choices whose prompt is done;
        2. set the prompt under way aside if another one should be first;
        3. admit the first waiting request if its choices fit, with the tokens that are in the cache already;
        4. prefill and decode in turn.
        """
        copies = (*self._close_holes(), *self._place_fresh())
        self._set_aside()
        copies += tuple(self._admit())
        request = self._prefilling
        if request is not None and (not self._running or self._last_kind == "decode"):
            self._last_kind = "prefill"
            return self._plan_prefill(request, copies)
        self._last_kind = "decode"
        if not self._running:
            return None
        choices = tuple(self._running)
        return StepPlan("decode", copies, choices, num_scheduled_tokens=len(choices))

    def _plan_prefill(self, request: Request, copies: tuple[RowCopy, ...]) -> StepPlan:
        start = request.num_computed_tokens
        end = request.chunk_end(self.max_num_batched_tokens)
        choices = tuple(request.choices) if end == request.num_prompt_tokens else ()
        return StepPlan("prefill", copies, choices, request, self._prefill_slot, start, end - start)

    def _close_holes(self) -> list[RowCopy]:
        for choice in self._running:
            if choice.finish_reason is not None:
                self._release(self._slot(choice))
        running = [choice for choice in self._running if choice.finish_reason is None]
        movers = [choice for choice in running if self._slot(choice) >= len(running)]
        holes = set(range(len(running))) - {self._slot(choice) for choice in running}
        copies = []
        for choice, hole in zip(movers, sorted(holes), strict=True):
            copies.append(self._rows.exchange(self._slot(choice), hole))
            choice.slot = hole
        self._running = sorted(running, key=self._slot)
        return copies

    def _place_fresh(self) -> list[RowCopy]:
        """The first choice takes the row of the prompt along, the others get copies of it."""
        choices = [choice for choice in self._fresh if choice.finish_reason is None]
        if self._fresh and not choices:
            self._release(self._prefill_slot)
        copies, source = [], self._prefill_slot
        for choice in choices:
            target = choice.slot = len(self._running)
            if choice is not choices[0]:
                copies.append(RowCopy(source, target, choice.request.num_prompt_tokens))
            elif source != target:
                copies.append(self._rows.exchange(source, target))
                source = target
            self._rows.put(target, choice)
            self._running.append(choice)
        self._fresh = []
        return copies

    def _release(self, slot: int) -> None:
        """Nobody uses a row any more; what it holds stays if it can be found again."""
        choice = self._rows[slot]
        is_kept = choice is not None and choice.request.key is not None
        self._rows.put(slot, choice if is_kept else None)

    @staticmethod
    def _slot(choice: Choice) -> int:
        assert choice.slot is not None
        return choice.slot

    def _set_aside(self) -> None:
        """Let the first of the queue go before the prompt under way, if there is room for the rows of both.

        A prompt that cannot be found in its row again is not interrupted.
        """
        request = self._prefilling
        if request is None or request.key is None or not request.num_computed_tokens:
            return
        if not self._waiting:
            return
        num_tokens_left = request.num_prompt_tokens - request.num_computed_tokens
        first, rank = self._waiting[0], self._rank(request, num_tokens_left)
        if first.rank < rank and self._fits(first, [*self._aside(), request]):
            self._prefilling = None
            self._enqueue(request, num_tokens_left)

    def _aside(self) -> list[Request]:
        """Requests that wait with a part of their prompt in a row."""
        begun = (request for request in self._waiting if request.num_computed_tokens)
        return [request for request in begun if self._rows.holds(request.choices[0])]

    def _fits(self, request: Request, aside: list[Request]) -> bool:
        """Whether there are rows for its choices beside those that run and those of who is `aside`."""
        num_held = len(self._running) + len({*aside} - {request})
        return num_held + request.num_choices <= self.max_num_seqs

    def _next(self) -> Request | None:
        """Who is admitted: the first in turn; where it does not fit, who has a row already.

        Rows of those who were set aside are given up only if nothing else could go on.
        """
        if not self._waiting or len(self._running) >= self.max_num_seqs:
            return None
        aside, first = self._aside(), min(self._waiting, key=self._turn)
        for request in (first, *aside):
            if self._fits(request, aside):
                return request
        return None if self._running else first

    def _turn(self, request: Request) -> tuple[int, int, tuple[int, float]]:
        return request.priority, self._num_tokens_for[request.caller], request.rank

    def _admit(self) -> list[RowCopy]:
        request = None if self._prefilling is not None else self._next()
        if request is None:
            return []
        self._waiting.remove(request)
        self._num_tokens_for_last = self._num_tokens_for[request.caller]
        self._prefilling, first_free = request, len(self._running)
        for aside in self._aside():
            self._rows.touch(aside.choices[0])
        prefix = self._rows.find(request.num_common_tokens, first_free)
        slot = self._prefill_slot = self._rows.slot_for(prefix, first_free)
        was_begun = request.num_computed_tokens > 0
        num_known = min(request.num_cached_tokens, prefix.num_tokens)
        request.num_cached_tokens = num_known if was_begun else prefix.num_tokens
        request.num_computed_tokens = prefix.num_tokens
        self._rows.forget(request.choices[0])
        self._rows.put(slot, request.choices[0])
        is_copied = prefix.num_tokens > 0 and prefix.slot != slot
        return [RowCopy(prefix.slot, slot, prefix.num_tokens)] if is_copied else []

    def update(self, plan: StepPlan) -> None:
        """Record that a step was computed; the tokens sampled from its logits follow by `append`."""
        if plan.request is not None and plan.request is self._prefilling:
            plan.request.num_computed_tokens += plan.num_scheduled_tokens
            self._num_prefilled_tokens += plan.num_scheduled_tokens
            self._num_tokens_for[plan.request.caller] += plan.num_scheduled_tokens
            if plan.choices:
                self._prefilling, self._fresh = None, list(plan.choices)

    def append(self, choice: Choice, token_id: int) -> None:
        """Record a token of a choice that has not ended: one each step, or several if they were guessed.

        A stop token ends the choice, and so does the last token that `max_tokens` allows.
        """
        assert choice.finish_reason is None
        choice.output_token_ids.append(token_id)
        self._num_tokens_for[choice.request.caller] += 1
        if token_id in choice.request.stop_token_ids:
            self.finish(choice, FinishReason.STOP)
        elif choice.num_output_tokens >= choice.request.max_tokens:
            self.finish(choice, FinishReason.LENGTH)

    # --- invariants ----------------------------------------------------------------------------

    def check(self) -> None:
        """Raise AssertionError unless slots and queues are consistent. For tests, and when idle."""
        slots = [choice.slot for choice in self._running]
        assert slots == list(range(len(slots))), f"slots are not compact: {slots}"
        used = len(self._running) + len(self._fresh) + (self._prefilling is not None)
        assert used <= self.max_num_seqs, f"{used} of {self.max_num_seqs} slots"
        ranks = [request.rank for request in self._waiting]
        assert ranks == sorted(ranks), f"the queue is out of order: {ranks}"
        if self._prefilling is not None:
            assert self._prefill_slot not in slots, "a prompt is computed in a row that is running"
            assert self._rows[self._prefill_slot] is self._prefilling.choices[0], "it is another's"
        for choice in self._running:
            assert choice.num_computed_tokens <= self.max_model_len
            is_holder = self._rows[self._slot(choice)] is choice
            assert is_holder or choice.finish_reason is not None, "a choice runs in another's row"
        assert len(self._waiting) <= self.max_waiting
