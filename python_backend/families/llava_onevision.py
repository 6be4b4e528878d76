"""LLaVA-OneVision: a picture alone is cut into tiles, several are seen as a whole each, frames more coarsely.

Dimension letters: T tiles, N features of a tile (a square of `side` x `side`), M embeddings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from python_backend.families.base import Detail, Features, ModelFamily, PreparedImage
from python_backend.spec import TensorSpec
from python_backend.video import Video

_END_OF_VIDEO = (0, 1)
"""In place of the size of a picture; (0, 0) for frames that others follow: only the last has a newline."""

_MAX_OVERSIZE = 1.1
"""Times the side of the allowed area that features may take before they are resampled."""


class LlavaOnevision(ModelFamily):
    """Serving side of `LlavaOnevisionForConditionalGeneration`."""

    def __init__(self, config: Mapping[str, Any], processor_dir: Path) -> None:
        super().__init__(config, processor_dir)
        vision = config["vision_config"]
        self._tile, self._channels = vision["image_size"], vision["num_channels"]
        self._side = self._tile // vision["patch_size"]
        self._max_tiles = int(config["vision_aspect_ratio"].removeprefix("anyres_max_"))

    def load_processors(self) -> None:
        super().load_processors()
        _ = self._processor

    @cached_property
    def _processor(self) -> Any:
        from transformers.models.llava_onevision import image_processing_pil_llava_onevision

        processor = image_processing_pil_llava_onevision.LlavaOnevisionImageProcessorPil
        return processor.from_pretrained(self.processor_dir)

    @property
    def image_token_id(self) -> int:
        return int(self.config["image_token_index"])

    @property
    def encoder_tensors(self) -> tuple[TensorSpec, ...]:
        pixels = ("T", self._channels, self._tile, self._tile)
        return (
            TensorSpec("pixel_values", "float32", pixels),
            TensorSpec("image_sizes", "int64", ("num_images", 2)),
            TensorSpec("num_tiles", "int64", ("num_images",)),
        )

    def prepare_image(self, image: Image.Image, detail: Detail, num_images: int) -> PreparedImage:
        # The processor tells a picture alone from several by the inner list's length. With low
        # detail a picture is seen as one of several would be: whole.
        is_whole = num_images > 1 or detail == "low"
        batch = self._processor(images=[[image] * (2 if is_whole else 1)])
        pixels = np.asarray(batch["pixel_values"][0], np.float32)
        features = {
            "pixel_values": pixels,
            "image_sizes": np.array([[image.height, image.width]]),
            "num_tiles": np.array([len(pixels)]),
        }
        return PreparedImage(features, len(self._plan(features)[0]))

    @property
    def video_token_id(self) -> int | None:
        return int(self.config["video_token_index"])

    def prepare_video(self, video: Video) -> PreparedImage:
        """Frames are squeezed into a tile each.

        Source: `LlavaOnevisionVideoProcessor` in transformers 5.23, which needs torchvision.
        """
        from transformers.image_utils import SizeDict

        processor, size = self._processor, SizeDict(height=self._tile, width=self._tile)
        frames = []
        for frame in video.frames:
            pixels = np.asarray(frame).transpose(2, 0, 1)
            pixels = processor.resize(pixels, size=size, resample=processor.resample)
            pixels = processor.rescale(pixels, processor.rescale_factor)
            pixels = processor.normalize(pixels, processor.image_mean, processor.image_std)
            frames.append(pixels.astype(np.float32))
        features = {
            "pixel_values": np.stack(frames),
            "image_sizes": np.array([_END_OF_VIDEO]),
            "num_tiles": np.array([len(frames)]),
        }
        return PreparedImage(features, len(self._plan(features)[0]), is_video=True)

    def split_frames(self, features: Features) -> Sequence[Features]:
        if features["image_sizes"][0, 0]:
            return [features]
        *others, last = np.split(features["pixel_values"], len(features["pixel_values"]))
        sizes = [*((frame, (0, 0)) for frame in others), (last, features["image_sizes"][0])]
        return [
            {"pixel_values": frame, "image_sizes": np.array([size]), "num_tiles": np.array([1])}
            for frame, size in sizes
        ]

    def split_images(self, features: Features) -> list[Features]:
        counts = features["num_tiles"]
        tiles = np.split(features["pixel_values"], np.cumsum(counts)[:-1] if len(counts) else [])
        return [
            {
                "pixel_values": pixels,
                "image_sizes": features["image_sizes"][i : i + 1],
                "num_tiles": counts[i : i + 1],
            }
            for i, pixels in enumerate(tiles[: len(counts)])
        ]

    def encoder_feeds(self, images: Sequence[Features]) -> dict[str, np.ndarray]:
        pixels = np.concatenate([image["pixel_values"] for image in images])
        newline = len(pixels) * self._side**2
        indices, weights, first = [], [], 0
        for image in images:
            index, weight = self._plan(image)
            indices.append(np.where(index < 0, newline, index + first))
            weights.append(weight)
            first += len(image["pixel_values"]) * self._side**2
        return {
            "pixel_values": pixels,
            "pack_index": np.concatenate(indices),
            "pack_weight": np.concatenate(weights),
        }

    def split_embeds(self, embeds: np.ndarray, images: Sequence[Features]) -> list[np.ndarray]:
        counts = [len(self._plan(image)[0]) for image in images]
        return np.split(embeds, np.cumsum(counts)[:-1])

    def _plan(self, image: Features) -> tuple[np.ndarray, np.ndarray]:
        """What each of the image's embeddings is made of.

        Returns:
            index int64 [M, 4] into the image's features [T * N], -1 for the newline, and weight
            float32 [M, 4].
        """
        num_base = self._side**2
        base = np.arange(num_base)
        if not image["image_sizes"][0, 0]:
            return self._plan_video(len(image["pixel_values"]), image["image_sizes"][0, 1])
        if len(image["pixel_values"]) == 1:
            return _whole(np.append(base, -1))
        height, width = (int(size) for size in image["image_sizes"][0])
        rows, columns = (size // self._tile for size in self._best_resolution(height, width))
        # Tiles follow the base picture, row by row; inside a tile features do.
        tile = np.arange(rows * columns).reshape(rows, 1, columns, 1) + 1
        inside = base.reshape(1, self._side, 1, self._side)
        grid = (tile * num_base + inside).reshape(rows * self._side, columns * self._side)
        grid = unpad(grid, height, width)
        index, weight = _resample(grid, math.sqrt(grid.size / (self._max_tiles * num_base)))
        newline_index = np.full((len(index), 1, 4), -1)
        newline_weight = np.zeros((len(index), 1, 4), np.float32)
        newline_weight[..., 0] = 1
        base_index, base_weight = _whole(base)
        return (
            np.concatenate(
                [base_index, np.concatenate([index, newline_index], axis=1).reshape(-1, 4)]
            ),
            np.concatenate(
                [base_weight, np.concatenate([weight, newline_weight], axis=1).reshape(-1, 4)]
            ),
        )

    def _plan_video(self, num_frames: int, num_newlines: int) -> tuple[np.ndarray, np.ndarray]:
        """The same for frames of a video: half as fine, and the newline behind the last one.

        Source: `apply_pooling` in transformers 5.23 `modeling_llava_onevision.py`.
        """
        grid = np.arange(self._side**2).reshape(self._side, self._side)
        side = -(-self._side // 2)
        taps, weight = _interpolate(grid, (side, side))
        index = np.arange(num_frames)[:, None, None] * grid.size + taps.reshape(1, -1, 4)
        newline_index, newline_weight = _whole(np.full(num_newlines, -1))
        weight = np.tile(weight.reshape(-1, 4), (num_frames, 1))
        return (
            np.concatenate([index.reshape(-1, 4), newline_index]),
            np.concatenate([weight, newline_weight]),
        )

    def _best_resolution(self, height: int, width: int) -> tuple[int, int]:
        from transformers.image_processing_utils import select_best_resolution

        best: tuple[int, int] = select_best_resolution(
            (height, width), self.config["image_grid_pinpoints"]
        )
        return best


def unpad(grid: np.ndarray, height: int, width: int) -> np.ndarray:
    """The part of a grid [rows, columns] that a picture of that size covers.

    Source: `unpad_image` in transformers 5.23 `modeling_llava_onevision.py`.
    """
    rows, columns = grid.shape
    if width / height > columns / rows:
        covered = int(round(height * (columns / width), 7))
        padding = (rows - covered) // 2
        return grid[padding : rows - padding]
    covered = int(round(width * (rows / height), 7))
    padding = (columns - covered) // 2
    return grid[:, padding : columns - padding]


def _whole(index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Taps [M, 4] that take one feature each."""
    weight = np.zeros((len(index), 4), np.float32)
    weight[:, 0] = 1
    return np.repeat(index[:, None], 4, axis=1), weight


def _resample(grid: np.ndarray, oversize: float) -> tuple[np.ndarray, np.ndarray]:
    """Taps [rows, columns, 4] of a grid, made smaller by `oversize` where that is too much."""
    if oversize <= _MAX_OVERSIZE:
        index, weight = _whole(grid.ravel())
        return index.reshape(*grid.shape, 4), weight.reshape(*grid.shape, 4)
    rows, columns = (int(size // oversize) for size in grid.shape)
    return _interpolate(grid, (rows, columns))


def _interpolate(grid: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Taps [rows, columns, 4] of a grid, and their weights, that make it one of this shape.

    Source: `torch.nn.functional.interpolate`, bilinear without align_corners.
    """
    axes = (_axis(size, new_size) for size, new_size in zip(grid.shape, shape, strict=True))
    taps, weights = zip(*axes, strict=True)
    rows, columns = taps
    index = grid[rows[:, None, :, None], columns[None, :, None, :]]
    weight = weights[0][:, None, :, None] * weights[1][None, :, None, :]
    return index.reshape(*index.shape[:2], 4), weight.reshape(*weight.shape[:2], 4)


def _axis(size: int, new_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Two taps int64 [new_size, 2] and their weights float32 along an axis."""
    place = np.maximum((np.arange(new_size, dtype=np.float32) + 0.5) * (size / new_size) - 0.5, 0)
    floor = place.astype(np.int64)
    fraction = (place - floor).astype(np.float32)
    taps = np.stack([floor, np.minimum(floor + 1, size - 1)], axis=1)
    return taps, np.stack([1 - fraction, fraction], axis=1)
