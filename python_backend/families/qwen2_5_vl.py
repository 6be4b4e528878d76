"""Qwen2.5-VL: Qwen2-VL whose tower attends in windows in most of its layers, and that knows time.

Dimension letters: N patches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from python_backend.families.base import Features
from python_backend.families.qwen2_vl import Qwen2VL, plan_groups


class Qwen2_5VL(Qwen2VL):  # noqa: N801 - the model's name has the underscore
    """Serving side of `Qwen2_5_VLForConditionalGeneration`."""

    def __init__(self, config: Mapping[str, Any], processor_dir: Path) -> None:
        super().__init__(config, processor_dir)
        self._window = config["vision_config"]["window_size"] // self._patch

    def encoder_feeds(self, images: Sequence[Features]) -> dict[str, np.ndarray]:
        feeds = super().encoder_feeds(images)
        grids = np.concatenate([image["image_grid_thw"] for image in images])
        window_ids = plan_windows(grids, feeds["position_ids"], self._window)
        slots, place = plan_groups(window_ids, self._window**2)
        return {**feeds, "window_slots": slots, "window_place": place}

    def _positions_per_patch(self, image: Features) -> np.float32:
        if "seconds_per_patch" not in image:
            return np.float32(1)
        tokens_per_second = self.config["vision_config"]["tokens_per_second"]
        return np.float32(tokens_per_second * image["seconds_per_patch"][0])


def plan_windows(grids: np.ndarray, positions: np.ndarray, window: int) -> np.ndarray:
    """Which window each patch belongs to, int64 [N].

    Args:
        grids: int64 [num_images, 3], frames, rows and columns of patches of each image.
        positions: int64 [N, 2], row and column of each patch in its image.
        window: side of a window, in patches.
    """
    counts = grids[:, 1] * grids[:, 2]
    across = -(-grids[:, 2] // window)
    num_windows = -(-grids[:, 1] // window) * across
    # Frame by frame: each has windows of its own.
    image_of_frame = np.repeat(np.arange(len(grids)), grids[:, 0])
    first = np.cumsum(num_windows[image_of_frame]) - num_windows[image_of_frame]
    frames = np.repeat(np.arange(len(image_of_frame)), counts[image_of_frame])
    row, column = (positions // window).T
    ids: np.ndarray = first[frames] + row * across[image_of_frame[frames]] + column
    return ids
