"""A byte-level BPE of some 300 tokens with Qwen's control tokens and chat template, trained on the spot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import ByteLevel
from tokenizers.trainers import BpeTrainer

NUM_TEXT_TOKENS = 320
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
NOT_SPECIAL = ("<tool_call>", "</tool_call>")
TOKEN_IDS = {token: NUM_TEXT_TOKENS + i for i, token in enumerate(SPECIAL)}
NUM_TOKENS = NUM_TEXT_TOKENS + len(SPECIAL) + len(NOT_SPECIAL)

_TRAINING_TEXT = (
    "What is in this picture? Describe the image in one sentence, please.",
    "You are a helpful assistant. The sea is blue and the sky is blue, too.",
    "And in this one? How many colours do you see in the picture above?",
    "Is there something to read, such as a street sign or the number 1234?",
    "system user assistant system user assistant system user assistant",
) * 4

# The pattern of Qwen2's tokenizer.json.
_PRETOKENIZE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tokenizer(
    folder: Path,
    more_special: Sequence[str] = (),
    chat_template: str = CHAT_TEMPLATE,
    more_visible: Sequence[str] = (),
) -> None:
    """Write tokenizer.json and what the hub's checkpoints have beside it.

    Args:
        folder: of the checkpoint.
        more_special: control tokens that the family has besides Qwen's; they come last.
        chat_template: the family's.
        more_visible: tokens that it has besides Qwen's and that show in a text.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PRETOKENIZE), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = ByteLevel(trim_offsets=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = BpeTrainer(vocab_size=NUM_TEXT_TOKENS, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_TRAINING_TEXT, trainer)
    assert tokenizer.get_vocab_size() == NUM_TEXT_TOKENS
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in NOT_SPECIAL])
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in more_special]
    )
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in more_visible])
    tokenizer.save(str(folder / "tokenizer.json"))

    model = json.loads(tokenizer.to_str())["model"]
    merges = "".join(f"{left} {right}\n" for left, right in model["merges"])
    _write_json(folder / "vocab.json", model["vocab"])
    (folder / "merges.txt").write_text("#version: 0.2\n" + merges, encoding="utf-8")
    added = {
        str(NUM_TEXT_TOKENS + i): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": token not in (*NOT_SPECIAL, *more_visible),
        }
        for i, token in enumerate((*SPECIAL, *NOT_SPECIAL, *more_special, *more_visible))
    }
    _write_json(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": False,
            "add_prefix_space": False,
            "added_tokens_decoder": added,
            "additional_special_tokens": [*SPECIAL[1:], *more_special],
            "bos_token": None,
            "chat_template": chat_template,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "errors": "replace",
            "model_max_length": 131072,
            "pad_token": "<|endoftext|>",
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
    )
    _write_json(folder / "chat_template.json", {"chat_template": chat_template})


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
