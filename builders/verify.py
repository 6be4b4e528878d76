"""Verification: the built model against a reference, before anything is served.

A case is a conversation with what the reference made of it. The cases come from Hugging Face, run
here in eager fp32 (`builders.hf_reference`), or from a recording that lies beside a checkpoint, so
that the default model is verified on machines without torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from safetensors.numpy import load_file

from python_backend.arrays import Array, to_host
from python_backend.config import EngineConfig
from python_backend.errors import ParityError
from python_backend.families.base import PreparedPrompt
from python_backend.image_inputs import image_inputs
from python_backend.kv_cache import KVCache
from python_backend.loading import load_cross_attention, load_runtime, load_vision_encoder
from python_backend.manifest import ModelFolder
from python_backend.preprocess import PreparedRequest, Preprocessor
from python_backend.vision_encoder import EncoderImage, no_image_embeds

RECORDING = "reference.json"
_RECORDED_TENSORS = "reference.safetensors"

FP32_TOLERANCE = 1e-4
"""Root-mean-square error over root-mean-square value, at most, where nothing is rounded.

Only the order of additions differs; measured 1e-6."""

ROUNDED_TOLERANCE = 0.3
"""The same for graphs with fp8, int8 or int4 weights against a reference with the same rounded
weights.

ONNX Runtime rounds the activations to 8 bits as well; measured 0.1 on random weights of a Qwen and 0.23 of
a Gemma 3. A graph that is wrong is above 1."""

UNROUNDED_TOLERANCE = {
    "fp32": FP32_TOLERANCE,
    "fp8": ROUNDED_TOLERANCE,
    "int8": ROUNDED_TOLERANCE,
    "int4": 0.6,
}
"""The same against the weights as they were, by precision: measured 0.08 for 8 bits, integers or floats, and
0.4 for 4 bits of the default model."""

COMPUTE_TOLERANCE = {ir.DataType.BFLOAT16: 0.1, ir.DataType.FLOAT16: 0.02}
"""What an engine that computes in another format may be off besides: such a format rounds to 2^-8 or 2^-11
after every operation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceCase:
    """What the reference made of one conversation.

    Attributes:
        name: for reports.
        messages: as the preprocess stage takes them.
        images: encoded files, in order.
        prompt_token_ids: int64 [S].
        image_embeds: float32 [num_image_tokens, hidden_size]; None without images.
        logits: float32 [T, V], of the last prompt token and of the T - 1 greedy tokens after it.
        greedy_token_ids: what greedy decoding generates, at least T tokens.
    """

    name: str
    messages: Sequence[Mapping[str, Any]]
    images: Sequence[bytes]
    prompt_token_ids: np.ndarray
    image_embeds: np.ndarray | None
    logits: np.ndarray
    greedy_token_ids: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseResult:
    """How far a built model is from the reference in one case.

    Attributes:
        name: the case.
        embeds_error: relative RMS error of the image embeddings; 0 without images.
        logits_error: the worst relative RMS error of a row of logits.
        num_equal_tokens: greedy tokens that agree before the first difference.
        num_tokens: greedy tokens compared.
        problems: what is out of tolerance, in words.
    """

    name: str
    embeds_error: float
    logits_error: float
    num_equal_tokens: int
    num_tokens: int
    problems: tuple[str, ...] = field(default=())


def recorded_cases(folder: Path) -> list[ReferenceCase] | None:
    """The recording beside a checkpoint, if there is one."""
    path = folder / RECORDING
    if not path.exists():
        return None
    tensors = load_file(folder / _RECORDED_TENSORS)
    return [
        ReferenceCase(
            name=case["name"],
            messages=case["messages"],
            images=[(folder / image).read_bytes() for image in case["images"]],
            prompt_token_ids=np.array(case["prompt_token_ids"]),
            image_embeds=tensors.get(f"case{i}.image_embeds"),
            logits=tensors[f"case{i}.logits"],
            greedy_token_ids=case["greedy_token_ids"],
        )
        for i, case in enumerate(json.loads(path.read_text(encoding="utf-8"))["cases"])
    ]


def verify(
    model: ModelFolder,
    cases: Sequence[ReferenceCase],
    logits_tolerance: float,
    embeds_tolerance: float = FP32_TOLERANCE,
) -> list[CaseResult]:
    """Run every case through the built stages and compare.

    Args:
        model: staged or in place.
        cases: what the reference made of some conversations.
        logits_tolerance: relative RMS error of a row of logits, at most.
        embeds_tolerance: the same of image embeddings.

    Raises:
        ParityError: naming every case that is out of tolerance, after all have run.
    """
    runner = _CaseRunner(model, logits_tolerance, embeds_tolerance)
    results = [runner.run(case) for case in cases]
    problems = [problem for result in results for problem in result.problems]
    if problems:
        raise ParityError(
            "the built graphs do not give the reference's numbers: " + "; ".join(problems)
        )
    return results


class _CaseRunner:
    """One row of the cache, one case after another."""

    def __init__(
        self, model: ModelFolder, logits_tolerance: float, embeds_tolerance: float
    ) -> None:
        self._logits_tolerance, self._embeds_tolerance = logits_tolerance, embeds_tolerance
        self._is_exact = logits_tolerance <= FP32_TOLERANCE
        self._preprocessor = Preprocessor(model)
        # Every picture is computed, those of an earlier case as well.
        self._config = config = EngineConfig(encoder_cache_bytes=0)
        self._encoder = None
        if model.manifest.vision_encoder is not None:
            self._encoder = load_vision_encoder(model, self._preprocessor.family, config)
        self._decoder = load_runtime(model, model.manifest.decoder, config)
        self._cache = KVCache(self._decoder.spec, 1, self._decoder.zeros, self._decoder.min_rows)
        self._images = image_inputs(self._decoder, self._cache, load_cross_attention(model, config))

    def run(self, case: ReferenceCase) -> CaseResult:
        prepared = self._preprocessor.prepare({"messages": case.messages}, case.images)
        problems = []
        if not np.array_equal(prepared.prompt.token_ids, case.prompt_token_ids):
            return CaseResult(
                name=case.name,
                embeds_error=float("nan"),
                logits_error=float("nan"),
                num_equal_tokens=0,
                num_tokens=len(case.greedy_token_ids),
                problems=(f"{case.name}: the prompt's token ids differ",),
            )
        embeds, embeds_error = self._encode(prepared, case)
        if not embeds_error <= self._embeds_tolerance:
            problems.append(f"{case.name}: image embeddings are off by {embeds_error:.2e}")
        logits = self._decode(prepared.prompt, embeds, case.greedy_token_ids)
        errors = [relative_error(a, b) for a, b in zip(logits, case.logits, strict=False)]
        if not max(errors) <= self._logits_tolerance:
            problems.append(f"{case.name}: logits are off by {max(errors):.2e}")
        greedy = logits.argmax(axis=1)
        equal = greedy == np.array(case.greedy_token_ids)
        num_equal = len(equal) if equal.all() else int(equal.argmin())
        if self._is_exact and num_equal < len(equal):
            problems.append(f"{case.name}: greedy tokens differ from number {num_equal + 1}")
        return CaseResult(
            name=case.name,
            embeds_error=embeds_error,
            logits_error=max(errors),
            num_equal_tokens=num_equal,
            num_tokens=len(equal),
            problems=tuple(problems),
        )

    def _encode(self, prepared: PreparedRequest, case: ReferenceCase) -> tuple[Array, float]:
        """Image embeddings as the decoder takes them, and how far off they are."""
        if self._encoder is None:
            return no_image_embeds(self._decoder.spec), 0.0
        images = [
            EncoderImage(image.features, image_hash)
            for image, image_hash in zip(prepared.images, prepared.image_hashes, strict=True)
        ]
        embeds = self._encoder.encode(images)
        error = 0.0
        if case.image_embeds is not None:
            error = relative_error(np.concatenate([to_host(e) for e in embeds]), case.image_embeds)
        return self._encoder.join(images, embeds), error

    def _decode(self, prompt: PreparedPrompt, embeds: Array, tokens: Sequence[int]) -> np.ndarray:
        """Logits [T, V] that choose each of `tokens` when the ones before are given."""
        num_prompt, positions = len(prompt.token_ids), prompt.position_ids
        rows = []
        for start, stop in self._chunks(prompt):
            images = self._images.prefill(0, prompt, embeds, start, stop)
            ids = prompt.token_ids[start:stop]
            rows = [self._step(ids, positions[:, start:stop], start, images)]
        for step, token in enumerate(tokens[:-1]):
            position = np.full((len(positions), 1), int(positions.max()) + 1 + step)
            images = self._images.decode([prompt], num_tokens=1)
            rows.append(self._step(np.array([token]), position, num_prompt + step, images))
        return np.stack(rows)

    def _chunks(self, prompt: PreparedPrompt) -> Iterator[tuple[int, int]]:
        """The prompt in pieces as long as serving has them at most: engines are built for no longer ones."""
        start, num_prompt = 0, len(prompt.token_ids)
        while start < num_prompt:
            stop = min(start + self._config.max_num_batched_tokens, num_prompt)
            is_image = prompt.image_index[start : stop + 1] >= 0
            if self._decoder.spec.takes_whole_images and stop < num_prompt and is_image[-2:].all():
                stop = start + int(np.flatnonzero(~is_image)[-1]) + 1
            yield start, stop
            start = stop

    def _step(
        self,
        ids: np.ndarray,
        positions: np.ndarray,
        start: int,
        images: Mapping[str, Array],
    ) -> np.ndarray:
        """Logits [V] after tokens [S] at `positions` [axes, S], which go to the cache from `start` on."""
        has_axes = len(self._decoder.spec.input("position_ids").shape) == 3
        feeds = {
            "input_ids": ids[None],
            "position_ids": np.ascontiguousarray(positions[:, None] if has_axes else positions[:1]),
            "write_indices": np.array([start]),
            "kv_lengths": np.array([start + len(ids)], np.int32),
            "logits_index": np.array([[len(ids) - 1]]),
            **images,
        }
        logits = to_host(self._decoder.run(feeds, self._cache.view(0, 1))["logits"])
        return logits[0, 0].copy()


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """Root-mean-square difference over root-mean-square value; inf when the shapes differ."""
    if actual.shape != expected.shape:
        return float("inf")
    difference = np.sqrt(np.mean((actual.astype(np.float64) - expected) ** 2))
    return float(difference / np.sqrt(np.mean(expected.astype(np.float64) ** 2)))
