"""The tiny checkpoints: of every family at least two, as unlike each other as it allows."""

from __future__ import annotations

from tests.tiny.gemma import GEMMA3, GEMMA3_TEXT
from tests.tiny.idefics import IDEFICS3
from tests.tiny.llava import LLAVA_ONEVISION
from tests.tiny.mllama import MLLAMA
from tests.tiny.qwen import (
    QWEN2_5_VL,
    QWEN2_VL,
    QWEN3_VL,
    SAVED,
    SHARDED,
    THINKING,
    TIED,
    TOOLS,
)
from tests.tiny.shape import Shape

SHAPES: dict[str, Shape] = {
    shape.name: shape
    for shape in (
        *(*QWEN2_5_VL, *QWEN2_VL, *QWEN3_VL, *LLAVA_ONEVISION, *GEMMA3, *IDEFICS3, *MLLAMA),
        *GEMMA3_TEXT,
    )
}
WITH_TOOLS = {shape.name: shape for shape in (TOOLS, THINKING)}
"""More of them, whose templates take tools; one reasons, too."""
SEEING = [shape.name for shape in SHAPES.values() if shape.sees_images]
"""Names of those that see images."""
GRAPHS = [
    *((name, "vision_encoder") for name in SEEING),
    *((name, "decoder") for name in SHAPES),
    *((shape.name, "cross_attention") for shape in MLLAMA),
]
"""Names of shapes with those of their graphs."""

__all__ = [
    "GRAPHS",
    "QWEN2_5_VL",
    "SAVED",
    "SEEING",
    "SHAPES",
    "SHARDED",
    "THINKING",
    "TIED",
    "TOOLS",
    "WITH_TOOLS",
    "Shape",
]
