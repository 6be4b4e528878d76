"""How a conversation becomes a prompt, and its media frames and pixels."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from openai_frontend.protocol.fields import MAX_INT32, Fields
from python_backend.errors import InvalidRequestError


class ChatTemplateKwargs(Fields):
    """Variables that chat templates read; a model refuses those that its own does not read.

    Nothing that brings messages, tools or templates, and no text in which a control token could stand.
    """

    enable_thinking: bool | None = None
    thinking: bool | None = None
    add_vision_id: bool | None = None
    date_string: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9 ,.:/-]{0,39}$")


class MmProcessorKwargs(Fields):
    """How many pixels an image is resized to, within what the checkpoint says."""

    min_pixels: int | None = Field(None, ge=1, le=MAX_INT32)
    max_pixels: int | None = Field(None, ge=1, le=MAX_INT32)

    @model_validator(mode="after")
    def _check_order(self) -> MmProcessorKwargs:
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise InvalidRequestError(
                f"'min_pixels' is {self.min_pixels}, more than 'max_pixels', {self.max_pixels}.",
                param="mm_processor_kwargs.min_pixels",
            )
        return self


class VideoIoKwargs(Fields):
    """Which frames of a video are looked at; the server's limits hold."""

    num_frames: int | None = Field(None, ge=1, le=MAX_INT32)
    fps: float | None = Field(None, ge=0.01, le=100)


class MediaIoKwargs(Fields):
    """How media are read; images are read in one way."""

    video: VideoIoKwargs | None = None


class ConversationFields(Fields):
    """How a conversation becomes a prompt."""

    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: ChatTemplateKwargs | None = None
    mm_processor_kwargs: MmProcessorKwargs | None = None
    media_io_kwargs: MediaIoKwargs | None = None

    @model_validator(mode="after")
    def _check_end(self) -> ConversationFields:
        if self.add_generation_prompt and self.continue_final_message:
            raise InvalidRequestError(
                "'continue_final_message' and 'add_generation_prompt' exclude each other; send one.",
                param="continue_final_message",
            )
        return self

    def prompt_options(self) -> dict[str, Any]:
        """What the client set, as members of the PROMPT JSON; video parts have `media_io_kwargs`."""
        names = ConversationFields.model_fields.keys() - {"media_io_kwargs"}
        options = self.model_dump(include=names, exclude_none=True)
        if self.continue_final_message:
            options["add_generation_prompt"] = False
        return {name: value for name, value in options.items() if value != {}}
