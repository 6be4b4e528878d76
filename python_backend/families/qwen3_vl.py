"""Qwen3-VL: Qwen2-VL whose tower has learned positions, resampled to every image's grid.

Dimension letters: N patches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from python_backend.families.base import Features
from python_backend.families.qwen2_vl import Qwen2VL


class Qwen3VL(Qwen2VL):
    """Serving side of `Qwen3VLForConditionalGeneration`."""

    def __init__(self, config: Mapping[str, Any], processor_dir: Path) -> None:
        super().__init__(config, processor_dir)
        self._table_side = int(config["vision_config"]["num_position_embeddings"] ** 0.5)

    @property
    def video_token_id(self) -> int | None:
        return None

    def encoder_feeds(self, images: Sequence[Features]) -> dict[str, np.ndarray]:
        feeds = super().encoder_feeds(images)
        grids = np.concatenate([image["image_grid_thw"] for image in images])
        sizes = np.repeat(grids[:, 1:], grids.prod(axis=1), axis=0)
        index, weight = plan_resampling(feeds["position_ids"], sizes, self._table_side)
        return {**feeds, "grid_index": index, "grid_weight": weight}


def plan_resampling(
    positions: np.ndarray, sizes: np.ndarray, side: int
) -> tuple[np.ndarray, np.ndarray]:
    """Bilinear taps into a square table of positions, whose corners are the image's corners.

    Args:
        positions: int64 [N, 2], row and column of each patch in its image.
        sizes: int64 [N, 2], rows and columns of that image.
        side: of the table.

    Returns:
        index int64 [N, 4] into the flattened table, weight float32 [N, 4].

    Source: `get_vision_interpolation_indices_and_weights` in transformers 5.23, align_corners.
    """
    steps = np.maximum(sizes - 1, 1).astype(np.float32)
    place = positions.astype(np.float32) * np.float32(side - 1) / steps
    floor = np.floor(place)
    taps = floor.astype(np.int64)[:, :, None] + np.arange(2)
    weights = 1 - np.abs(place[:, :, None] - floor[:, :, None] - np.arange(2, dtype=np.float32))
    taps = np.minimum(taps, side - 1)
    index = taps[:, 0, :, None] * side + taps[:, 1, None, :]
    weight = weights[:, 0, :, None] * weights[:, 1, None, :]
    return index.reshape(-1, 4), weight.reshape(-1, 4)
