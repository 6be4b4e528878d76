from __future__ import annotations

import math

import pytest

from benchmarks.rounding import Answers, questions, rows, texts
from benchmarks.smollm2 import _write_model

ANSWERS = {
    "fp32": Answers(logprobs=[-1.0, -3.0], likely=[4, 5], greedy=[[1, 2, 3, 4], [7, 8]]),
    "int8": Answers(logprobs=[-1.0, -3.2], likely=[4, 6], greedy=[[1, 2, 9, 4], [7, 8]]),
}


def test_perplexity_is_that_of_all_tokens():
    assert ANSWERS["fp32"].perplexity == pytest.approx(math.e**2)


def test_variants_are_compared_with_the_first_one():
    assert rows(ANSWERS) == [
        ("fp32", "7.39", "+0.0%", "100.0%", "2 of 2", "100%"),
        ("int8", "8.17", "+10.5%", "50.0%", "1 of 2", "75%"),
    ]


def test_texts_are_prose_of_python_and_the_same_every_time():
    assert len(texts()) == 24
    assert all(1000 < len(text) <= 2000 for text in texts())
    assert texts() == texts()
    assert len(set(questions())) == len(questions()) == 12


def test_the_language_model_keeps_its_weights_and_new_tokens_are_zeros(tmp_path):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, SmolVLMForConditionalGeneration

    config = LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    language_model = LlamaForCausalLM(config).eval()
    _write_model(language_model, 96, tmp_path)
    model = SmolVLMForConditionalGeneration.from_pretrained(tmp_path).eval()
    ids = torch.tensor([[1, 5, 80]])
    with torch.inference_mode():
        found, expected = model(input_ids=ids).logits, language_model(input_ids=ids).logits
    torch.testing.assert_close(found[..., :96], expected)
    assert not found[..., 96:].any()
