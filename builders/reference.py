"""What a built model is compared with, and how far off it may be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from builders.blocks import use_packed
from builders.families import family_graphs
from builders.families.base import FamilyGraphs
from builders.precision import Precision
from builders.source import Source
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
        embeds_tolerance: the same of image embeddings.
    """

    cases: Sequence[ReferenceCase]
    name: str
    logits_tolerance: float
    embeds_tolerance: float = FP32_TOLERANCE


def find_reference(
    model: ModelFolder, precision: Precision, source: Source, say: Callable[[str], None]
) -> Reference:
    """A recording beside the checkpoint, else Hugging Face with weights that are rounded like the model's.

    Args:
        model: what will be compared.
        precision: its number formats.
        source: the checkpoint.
        say: told what is being done.

    Raises:
        BundleError: there is no recording and no torch.
    """
    cases, name = recorded_cases(source.checkpoint.folder), "Hugging Face in eager fp32"
    precision_name = model.manifest.precision
    is_tower_rounded = precision.tower.weight_bits is not None
    embeds_tolerance = ROUNDED_TOLERANCE if is_tower_rounded else FP32_TOLERANCE
    if cases is not None:
        tolerance = UNROUNDED_TOLERANCE[precision_name]
        return Reference(cases, f"recorded from {name}", tolerance, embeds_tolerance)
    say("Running the checkpoint in Hugging Face, eager fp32")
    try:
        from builders.hf_reference import huggingface_cases
    except ImportError as error:
        raise BundleError(
            "verification needs torch: pip install 'triton-vlm[verify]', or pass --skip-verify and "
            "allow unverified models when you serve"
        ) from error
    graphs = family_graphs(model.manifest.model_type)(model.manifest.config)
    cases = huggingface_cases(
        source.checkpoint.folder, graphs, Preprocessor(model), precision, source.packed
    )
    if source.quantization:
        return Reference(
            cases,
            f"{name}, {source.quantization} weights dequantized",
            ROUNDED_TOLERANCE,
            ROUNDED_TOLERANCE if _has_packed_tower(graphs, source) else FP32_TOLERANCE,
        )
    if precision.weight_bits is None:
        return Reference(cases, name, FP32_TOLERANCE)
    rounded = f"{name}, weights rounded to {precision_name}"
    return Reference(cases, rounded, ROUNDED_TOLERANCE, embeds_tolerance)


def _has_packed_tower(graphs: FamilyGraphs, source: Source) -> bool:
    """Whether the checkpoint has layers of the vision tower quantized; most leave it out."""
    if not graphs.sees_images:
        return False
    tower, _ = graphs.vision_encoder(Precision.for_cpu("fp32"))
    return use_packed(tower.graph, graphs.checkpoint_names, source.packed) > 0
