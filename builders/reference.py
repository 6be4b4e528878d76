"""What a built model is compared with, and how far off it may be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from builders.families import family_graphs
from builders.precision import Precision
from builders.verify import (
    FP32_TOLERANCE,
    ROUNDED_TOLERANCE,
    UNROUNDED_TOLERANCE,
    ReferenceCase,
    recorded_cases,
)
from python_backend.errors import BundleError
from python_backend.manifest import ModelFolder
from python_backend.preprocess import Preprocessor


@dataclass(frozen=True, slots=True)
class Reference:
    """Conversations and what the reference made of them.

    Attributes:
        cases: the conversations.
        name: of the reference, for people.
        logits_tolerance: relative RMS error of logits that are computed in fp32, at most.
    """

    cases: Sequence[ReferenceCase]
    name: str
    logits_tolerance: float


def find_reference(
    model: ModelFolder, precision: Precision, checkpoint: Path, say: Callable[[str], None]
) -> Reference:
    """A recording beside the checkpoint, else Hugging Face with weights that are rounded like the model's.

    Args:
        model: what will be compared.
        precision: of its decoder.
        checkpoint: the folder.
        say: told what is being done.

    Raises:
        BundleError: there is no recording and no torch.
    """
    cases, name = recorded_cases(checkpoint), "Hugging Face in eager fp32"
    precision_name = model.manifest.precision
    if cases is not None:
        return Reference(cases, f"recorded from {name}", UNROUNDED_TOLERANCE[precision_name])
    say("Running the checkpoint in Hugging Face, eager fp32")
    try:
        from builders.hf_reference import huggingface_cases
    except ImportError as error:
        raise BundleError(
            "verification needs torch: pip install 'triton-vlm[verify]', or pass --skip-verify and "
            "allow unverified models when you serve"
        ) from error
    graphs = family_graphs(model.manifest.model_type)(model.manifest.config)
    cases = huggingface_cases(checkpoint, graphs, Preprocessor(model), precision)
    if precision.weight_bits is None:
        return Reference(cases, name, FP32_TOLERANCE)
    return Reference(cases, f"{name}, weights rounded to {precision_name}", ROUNDED_TOLERANCE)
