"""What the tokens of a choice add to the text of its answer and of its reasoning."""

from __future__ import annotations

from python_backend.choices import FinishReason
from python_backend.detokenizer import Detokenizer, ReasoningText
from python_backend.reasoning import Reasoning
from python_backend.sampling_params import SamplingParams
from python_backend.token_text import TokenText


class AnswerText:
    """The texts of one choice, token by token.

    White space between the two belongs to neither, unless a grammar says how the answer begins.

    Args:
        token_text: the model's tokens as text.
        params: what the request asks for.
        reasoning: where in its reasoning the choice is, kept up to date by its sampler; None if that is not
            told from the answer.
    """

    def __init__(
        self, token_text: TokenText, params: SamplingParams, reasoning: Reasoning | None
    ) -> None:
        self._answer = Detokenizer(token_text, params)
        self._thought = ReasoningText(token_text, params)
        self._reasoning = reasoning
        self._trims = params.grammar is None or params.grammar.kind == "tool_calls"
        self._shows_stop = params.include_stop_str_in_output

    @property
    def matched_stop(self) -> str | None:
        """The stop string that ends the answer, which a scheduler would go on with."""
        return self._answer.matched_stop

    def append(self, token_id: int, finish_reason: FinishReason | None) -> tuple[str, str]:
        """What a token adds to the answer and to the reasoning.

        Args:
            token_id: it.
            finish_reason: why the choice ends with it, if it does.
        """
        thought = self._append_thought(token_id, finish_reason)
        return self._append_answer(token_id, finish_reason), thought

    def _append_thought(self, token_id: int, finish_reason: FinishReason | None) -> str:
        if self._reasoning is None or self._reasoning.part == "answer":
            return ""
        is_stop = finish_reason is FinishReason.STOP
        is_shown = self._reasoning.part == "reasoning" and not is_stop
        text = self._thought.append([token_id] if is_shown else ())
        if not self._reasoning.is_open or finish_reason is not None:
            text += self._thought.finish()
        return text

    def _append_answer(self, token_id: int, finish_reason: FinishReason | None) -> str:
        text = ""
        is_shown = finish_reason is not FinishReason.STOP or self._shows_stop
        if is_shown and (self._reasoning is None or self._reasoning.part == "answer"):
            text = self._answer.append([token_id]).text
        if finish_reason is not None:
            text += self._answer.finish()
        if self._trims and self._reasoning is not None and self._reasoning.num_tokens:
            text = text.lstrip()
            self._trims = not text
        return text
