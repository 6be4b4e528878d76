"""Qwen3-VL: Qwen2-VL whose tower has learned positions, resampled to every image's grid.

A video is text between its pairs of frames, which says when they are shown; time is in no position.

Dimension letters: N patches, T pairs of frames.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from python_backend.families.base import Features, PreparedImage
from python_backend.families.qwen2_vl import Qwen2VL
from python_backend.families.video_config import read_video_config
from python_backend.video import Video

_DEFAULT_VIDEO_SIZE = {"shortest_edge": 128 * 32**2, "longest_edge": 768 * 32**2}
"""Source: `Qwen3VLVideoProcessor.size` in transformers 5.23."""


class Qwen3VL(Qwen2VL):
    """Serving side of `Qwen3VLForConditionalGeneration`."""

    def __init__(self, config: Mapping[str, Any], processor_dir: Path) -> None:
        super().__init__(config, processor_dir)
        self._table_side = int(config["vision_config"]["num_position_embeddings"] ** 0.5)

    def load_processors(self) -> None:
        super().load_processors()
        _ = self._video_size

    @cached_property
    def _video_size(self) -> Mapping[str, int]:
        """The fewest and most pixels of all frames of a video together."""
        return read_video_size(self.processor_dir)

    def prepare_video(self, video: Video) -> PreparedImage:
        """Time stands in the feature `times_s`, float64 [T], when each pair is shown."""
        depth, (width, height) = self._frames_per_patch, video.frames[0].size
        height, width = fit_frames(
            (max(len(video.frames), depth), height, width),
            depth=depth,
            factor=self._patch * self._merge,
            size=self._size(self._video_size),
        )
        resample = self._processor.resample
        frames = [frame.resize((width, height), resample) for frame in video.frames]
        image = self._prepare_frames(replace(video, frames=frames), do_resize=False)
        times = np.array(video.times_s, np.float64)
        times = np.pad(times, (0, -len(times) % depth), mode="edge").reshape(-1, depth)
        return replace(
            image, features={**image.features, "times_s": (times[:, 0] + times[:, -1]) / 2}
        )

    def image_text(self, image: PreparedImage) -> str:
        """Each pair of frames is an image with its time before it.

        The marks that the template has around the video stay around all of them.

        Source: `Qwen3VLProcessor.replace_video_token` in transformers 5.23.
        """
        if not image.is_video:
            return super().image_text(image)
        template, times = self.template, image.features["times_s"]
        begin, end = (
            template.text_of(int(self.config[f"vision_{mark}_token_id"]))
            for mark in ("start", "end")
        )
        pair = begin + template.video_token * (image.num_tokens // len(times)) + end
        return "".join(f"<{time:.1f} seconds>{pair}" for time in times)

    def positions(self, token_ids: np.ndarray, images: Sequence[Features]) -> np.ndarray:
        """As of so many images as there are pairs of frames."""
        grids = [
            np.array([[1, rows, columns]])
            for image in images
            for num_pairs, rows, columns in image["image_grid_thw"]
            for _ in range(num_pairs)
        ]
        return super().positions(token_ids, [{"image_grid_thw": grid} for grid in grids])

    def encoder_feeds(self, images: Sequence[Features]) -> dict[str, np.ndarray]:
        feeds = super().encoder_feeds(images)
        grids = np.concatenate([image["image_grid_thw"] for image in images])
        sizes = np.repeat(grids[:, 1:], grids.prod(axis=1), axis=0)
        index, weight = plan_resampling(feeds["position_ids"], sizes, self._table_side)
        return {**feeds, "grid_index": index, "grid_weight": weight}


def read_video_size(folder: Path) -> Mapping[str, int]:
    """`size` of the checkpoint's video processor."""
    size: Mapping[str, int] = read_video_config(folder).get("size", _DEFAULT_VIDEO_SIZE)
    return size


def fit_frames(
    shape: tuple[int, int, int], *, depth: int, factor: int, size: Mapping[str, int]
) -> tuple[int, int]:
    """Height and width, multiples of `factor`, that bring all frames together within `size`.

    Args:
        shape: number of frames, at least `depth`, height and width of each.
        depth: frames that are encoded together.
        factor: side of what becomes one embedding, in pixels.
        size: `shortest_edge` and `longest_edge`, which are numbers of pixels.

    Source: `smart_resize` in transformers 5.23 `video_processing_qwen3_vl.py`, which needs torch.
    """
    num_frames, height, width = shape
    if min(height, width) < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    fitted = [round(side / factor) * factor for side in (height, width)]
    num_pixels = round(num_frames / depth) * depth * math.prod(fitted)
    fewest, most = size["shortest_edge"], size["longest_edge"]
    if num_pixels > most:
        shrink = math.sqrt(num_frames * height * width / most)
        fitted = [
            max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width)
        ]
    elif num_pixels < fewest:
        grow = math.sqrt(fewest / (num_frames * height * width))
        fitted = [math.ceil(side * grow / factor) * factor for side in (height, width)]
    return fitted[0], fitted[1]


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
