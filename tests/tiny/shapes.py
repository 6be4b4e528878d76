"""The tiny checkpoints: of every family at least two, as unlike each other as it allows."""

from __future__ import annotations

from tests.tiny.gemma import GEMMA3
from tests.tiny.idefics import IDEFICS3
from tests.tiny.llava import LLAVA_ONEVISION
from tests.tiny.qwen import QWEN2_5_VL, QWEN2_VL, QWEN3_VL, SAVED, SHARDED, TIED
from tests.tiny.shape import Shape

SHAPES: dict[str, Shape] = {
    shape.name: shape
    for shape in (*QWEN2_5_VL, *QWEN2_VL, *QWEN3_VL, *LLAVA_ONEVISION, *GEMMA3, *IDEFICS3)
}

__all__ = ["QWEN2_5_VL", "SAVED", "SHAPES", "SHARDED", "TIED", "Shape"]
