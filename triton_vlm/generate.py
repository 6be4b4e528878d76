"""`triton-vlm generate`: the offline engine, in this process, without Triton."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def generate(
    model_folder: Path,
    prompt: str,
    images: Sequence[Path],
    sampling: Mapping[str, Any],
    *,
    allow_unverified: bool = False,
) -> None:
    """Write the answer to `prompt` about `images` to the terminal as it comes.

    Args:
        model_folder: a built model, `<model repository>/<name>`.
        prompt: what to ask.
        images: picture files the question is about.
        sampling: fields of `SamplingParams`; the model's own defaults hold for the others.
        allow_unverified: accept a model that was built without comparing it with a reference.

    Raises:
        VlmError: the folder is not a built model, or it cannot serve the request.
        OSError: an image cannot be read.
    """
    from python_backend.vlm import VLM

    content: list[dict[str, Any]] = [
        {"type": "image", "image": image.read_bytes()} for image in images
    ]
    content.append({"type": "text", "text": prompt})
    with VLM(model_folder, allow_unverified=allow_unverified) as vlm:
        params = vlm.model.manifest.read_sampling(sampling)
        vlm.generate(
            [[{"role": "user", "content": content}]],
            params,
            on_output=lambda _, output: _write(output.text),
        )
    _write("\n")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
