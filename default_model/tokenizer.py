"""Train the default model's tokenizer: a small byte-level BPE with Qwen2's special tokens.

It splits text as Qwen2's tokenizer does (digits one by one) and loads as `Qwen2Tokenizer`. The 256
bytes are all in it, so that any text can be encoded; words of the questions are single tokens.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import questions
from pictures import random_scene
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

VOCAB_SIZE = 1024
SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
    "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>",
    "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
NUM_BPE_TOKENS = VOCAB_SIZE - len(SPECIAL_TOKENS)
SPECIAL_IDS = {token: NUM_BPE_TOKENS + i for i, token in enumerate(SPECIAL_TOKENS)}

# Source: tokenizer.json of Qwen2.5-VL.
PRETOKENIZE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Source: chat_template.json of Qwen2.5-VL.
CHAT_TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}"
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "{% set video_count.value = video_count.value + 1 %}"
    "{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Words that people use around such questions but that the templates do not have.
_COMMON_ENGLISH = """
the of and to in a is that it was for on are as with his they at be this have from or one had by
but not what all were we when your can said there use an each which she do how their if will up
other about out many then them these so some her would make like him into time has look two more
write go see number no way could people my than first water been call who its now find long down
day did get come made may part over new sound take only little work know place year live me back
give most very after thing our just name good sentence man think say great where help through much
before line right too mean old any same tell boy follow came want show also around form three small
set put end does another well large must big even such because turn here why ask went men read need
land different home us move try kind hand picture again change off play spell air away animal house
point page letter mother answer found study still learn should world user assistant system role
colour color image images pictures photo drawing please thank hello describe count shape shapes
circle square triangle star diamond cross red orange yellow green blue purple black white grey
left right top bottom centre center corner middle background digits number numbers zero four five
"""


def corpus(seed: int = 0, num_scenes: int = 6000) -> list[str]:
    """Texts to train the tokenizer on: questions and answers, and some common English."""
    rng = random.Random(seed)
    texts = [f"<system>\n{prompt}\n" for prompt in questions.SYSTEM_PROMPTS] * 20
    for _ in range(num_scenes):
        scenes = [random_scene(rng, 112, 112) for _ in range(rng.choice((1, 1, 2, 3)))]
        if len(scenes) == 1:
            question = questions.ask(rng, scenes[0]) if rng.random() < 0.9 else questions.chat(rng)
        else:
            question = questions.ask_about_several(rng, scenes)
        texts += ["user\n", "assistant\n", questions.vary(rng, question.text), question.answer]
    texts += [f" {word}" for word in _COMMON_ENGLISH.split()] * 8
    return texts


def train_tokenizer() -> Tokenizer:
    """Train the tokenizer; always gives the same one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=NUM_BPE_TOKENS,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    if tokenizer.get_vocab_size() != NUM_BPE_TOKENS:
        raise ValueError(f"only {tokenizer.get_vocab_size()} of {NUM_BPE_TOKENS} tokens learnt")
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write a tokenizer and its chat template as they are laid out on the hub."""
    tokenizer.save(str(folder / "tokenizer.json"))
    saved = json.loads((folder / "tokenizer.json").read_text())["model"]
    write_json(folder / "vocab.json", saved["vocab"], indent=None)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in saved["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    added = {
        str(SPECIAL_IDS[token]): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for token in SPECIAL_TOKENS
    }
    write_json(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": False,
            "add_prefix_space": False,
            "added_tokens_decoder": added,
            "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
            "bos_token": None,
            "chat_template": CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "errors": "replace",
            "model_max_length": 2048,
            "pad_token": "<|endoftext|>",
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
    )
    write_json(folder / "chat_template.json", {"chat_template": CHAT_TEMPLATE})


def write_json(path: Path, value: Any, indent: int | None = 2) -> None:
    """Write `value` as JSON, readable, with a final newline."""
    path.write_text(json.dumps(value, indent=indent, ensure_ascii=False) + "\n")
