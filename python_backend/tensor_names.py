"""Every tensor that crosses a Triton boundary: one name each, used by config.pbtxt, stages and proxy.

The way of a request through the ensemble (shapes without the encoder's batch axis of one):

    client     -> prompt, images, sampling                                             -> ensemble
    preprocess -> prompt_token_ids, image_index, position_ids, (cross_range,) image_lengths, image_hashes,
                  encoder feeds
    encoder    -> image_embeds
    decoder    -> text, details                                     (decoupled: many responses)
"""

from __future__ import annotations

from typing import Final

# Client to ensemble.
PROMPT: Final = "prompt"
"""BYTES [1]: JSON, `{"messages": [...]}`, `{"prompt": "..."}` or `{"prompt_token_ids": [...]}`.

Beside messages there may be `add_generation_prompt` (default true), `continue_final_message`,
`chat_template_kwargs` (of `chat_template.TEMPLATE_VARIABLES`) and `mm_processor_kwargs` (`min_pixels`,
`max_pixels`). Beside any of them `truncate_prompt_tokens` may say how many tokens at the end of a prompt
without images are kept (-1: as many as the model holds).

Content parts are `{"type": "text", "text": ...}`, `{"type": "image"}` and `{"type": "video"}`. An image part
takes the next of `images`, and so does a video part, which may have `num_frames` and `fps` as
`video.FrameSampling` does. With `is_frames` it takes the next `num_frames` of them, one picture each, which
follow each other `fps` times a second. Beside messages may be `tools`, as the OpenAI API has them. Assistant
messages may have `reasoning_content` and `tool_calls`, each `{"function": {"name", "arguments"}}` with an
object of arguments; messages of the role `tool` answer them in their order."""
IMAGES: Final = "images"
"""BYTES [num_files]: encoded files (PNG, JPEG, WEBP, GIF; MP4 and WebM for videos), in prompt order; may be
empty."""
SAMPLING: Final = "sampling"
"""BYTES [1]: JSON of `SamplingParams`; an absent key takes the default."""

# Preprocess to encoder and decoder.
PROMPT_TOKEN_IDS: Final = "prompt_token_ids"
"""INT64 [num_prompt_tokens]: image placeholders already expanded."""
IMAGE_INDEX: Final = "image_index"
"""INT64 [num_prompt_tokens]: row of `image_embeds` for a placeholder token (the image's number under
cross-attention), -1 for text."""
POSITION_IDS: Final = "position_ids"
"""INT64 [axes, num_prompt_tokens]: 3 axes under M-RoPE, else 1."""
CROSS_RANGE: Final = "cross_range"
"""INT64 [num_prompt_tokens, 2]: first and one after the last row of `image_embeds` that each token sees by
cross-attention; only of models that have it."""
IMAGE_HASHES: Final = "image_hashes"
"""BYTES [num_images]: content hash of each preprocessed image."""
IMAGE_LENGTHS: Final = "image_lengths"
"""INT64 [num_images]: prompt tokens that stand for each image."""

# Encoder to decoder.
IMAGE_EMBEDS: Final = "image_embeds"
"""FP32 [num_embeds, hidden_size]: embeddings of all images of the request."""

# Decoder to client.
TEXT: Final = "text"
"""BYTES [1]: UTF-8 text of the answer that follows what was sent before for the same choice."""
DETAILS: Final = "details"
"""BYTES [1]: JSON about this response, see `DETAILS_KEYS`."""
DETAILS_KEYS: Final = (
    *("index", "token_ids", "reasoning", "logprobs", "finish_reason", "matched_stop", "usage"),
    *("prompt_token_ids", "prompt_logprobs", "timing"),
)
"""`index`: which of the n choices. `token_ids`: tokens covered by this response. `reasoning`: text of the
model's reasoning that follows what was sent before, only if there is any. `logprobs`: one
`{"token", "bytes", "logprob", "top_logprobs"}` per token, only when asked for.

On the first and the last response of a choice `usage` (`prompt_tokens`, `completion_tokens` of this choice
so far, `image_tokens`, `video_tokens`, `cached_tokens`, `reasoning_tokens`), on the last one `finish_reason`
(stop, length) and `matched_stop` (token id, string or null). Only when asked for, and of choice 0:
`prompt_token_ids` with its first token, and up to there `prompt_logprobs`; see `RequestOutput`. On the last
response of a request `timing`, if asked for; see `Timing`."""

# Side requests to the decoder.
CANCEL: Final = "cancel"
"""BYTES [1]: id of the request to abort; the only input of such a request. It answers at once with
an empty `text` and `details` `{"cancelled": true|false}`."""

# A request to the decoder with nothing but `prompt_token_ids` asks for their text, control tokens
# included; it is answered at once with `text` and empty `details`.

PREPROCESS_SUFFIX: Final = "-preprocess"
ENCODER_SUFFIX: Final = "-encoder"
DECODER_SUFFIX: Final = "-decoder"
"""The stages of model `x` are the Triton models `x-preprocess`, `x-encoder` and `x-decoder`."""

PARAM_SERVED_NAME: Final = "served_model_name"
PARAM_MAX_MODEL_LEN: Final = "max_model_len"
PARAM_MAX_IMAGES: Final = "max_images"
PARAM_TOOL_FORMAT: Final = "tool_format"
PARAM_REASONS: Final = "reasons"
PARAM_TAKES_VIDEOS: Final = "takes_videos"
"""config.pbtxt parameters of the ensemble that the proxy reads: public id, context limit in tokens,
images allowed in one prompt; how the model writes tool calls (a name of `tool_calls.FORMATS`), left out if it
calls no tools; `true` if it reasons before it answers, and if it takes videos, else left out."""
