"""Qwen2-VL: dynamic resolution, M-RoPE, and the integer plan of the tower.

Dimension letters: N patches, P numbers per patch, S prompt tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image

from python_backend.families.base import (
    LOW_DETAIL_PIXELS,
    Detail,
    Features,
    ModelFamily,
    PixelBounds,
    PreparedImage,
)
from python_backend.spec import TensorSpec
from python_backend.video import Video

_MAX_TOKENS_PER_FRAME = 768
"""Of a video, in pixels of that many tokens. Source: `VIDEO_MAX_TOKEN_NUM` of qwen-vl-utils; transformers
5.23 allows a frame what it allows a picture, which fills the context with a few seconds."""


class Qwen2VL(ModelFamily):
    """Serving side of `Qwen2VLForConditionalGeneration`."""

    def __init__(self, config: Mapping[str, Any], processor_dir: Path) -> None:
        super().__init__(config, processor_dir)
        vision = config["vision_config"]
        self._patch, self._merge = vision["patch_size"], vision["spatial_merge_size"]
        self._frames_per_patch = int(vision["temporal_patch_size"])
        self._bounds = PixelBounds()
        self._num_pixels = vision.get("in_channels", 3) * self._frames_per_patch * self._patch**2

    def load_processors(self) -> None:
        super().load_processors()
        _ = self._processor

    @cached_property
    def _processor(self) -> Any:
        from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl

        processor = image_processing_pil_qwen2_vl.Qwen2VLImageProcessorPil
        return processor.from_pretrained(self.processor_dir)

    @property
    def encoder_tensors(self) -> tuple[TensorSpec, ...]:
        return (
            TensorSpec("pixel_values", "float32", ("N", self._num_pixels)),
            TensorSpec("image_grid_thw", "int64", ("num_images", 3)),
        )

    def within(self, bounds: PixelBounds) -> Self:
        other = copy.copy(self)
        other._bounds = bounds
        return other

    def _size(self, size: Mapping[str, int], detail: Detail = "auto") -> dict[str, int]:
        """The fewest and most pixels of `size`, as far as the request wants them, under the same names."""
        fewest, most = (size[f"{name}_edge"] for name in ("shortest", "longest"))
        lower = min(max(self._bounds.min_pixels or fewest, fewest), most)
        upper = min(self._bounds.max_pixels or most, most)
        if detail == "low":
            upper = min(upper, LOW_DETAIL_PIXELS)
        return {"shortest_edge": lower, "longest_edge": max(upper, lower)}

    def prepare_image(self, image: Image.Image, detail: Detail, num_images: int) -> PreparedImage:
        batch = self._processor(images=[image], size=self._size(self._processor.size, detail))
        grid = np.asarray(batch["image_grid_thw"], np.int64)
        features = {"pixel_values": np.asarray(batch["pixel_values"]), "image_grid_thw": grid}
        return PreparedImage(features, int(grid.prod()) // self._merge**2)

    @property
    def video_token_id(self) -> int | None:
        return int(self.config["video_token_id"])

    def prepare_video(self, video: Video) -> PreparedImage:
        size = self._size(self._processor.size)
        most = _MAX_TOKENS_PER_FRAME * (self._patch * self._merge) ** 2
        size["longest_edge"] = max(min(size["longest_edge"], most), size["shortest_edge"])
        return self._prepare_frames(video, size=size)

    def _prepare_frames(self, video: Video, **resizing: Any) -> PreparedImage:
        """The processor makes a patch of one picture repeated; here it is of pictures that follow each other.

        Source: `Qwen2VLVideoProcessor.patchify` in transformers 5.23, which needs torchvision.
        """
        frames, depth = list(video.frames), self._frames_per_patch
        frames += frames[-1:] * (-len(frames) % depth)
        batch = self._processor(images=frames, **resizing)
        _, rows, columns = batch["image_grid_thw"][0]
        shape = (len(frames) // depth, depth, rows * columns, -1, depth, self._patch**2)
        repeated = np.asarray(batch["pixel_values"]).reshape(shape)
        patches = np.einsum("tdncdp->tncdp", repeated)
        grid = np.array([[len(patches), rows, columns]], np.int64)
        features = {
            "pixel_values": patches.reshape(-1, self._num_pixels),
            "image_grid_thw": grid,
            "seconds_per_patch": np.array([depth / video.fps], np.float32),
        }
        return PreparedImage(features, int(grid.prod()) // self._merge**2, is_video=True)

    def split_images(self, features: Features) -> list[Features]:
        grids = features["image_grid_thw"]
        ends = np.cumsum(grids.prod(axis=1))[:-1] if len(grids) else []
        patches = np.split(features["pixel_values"], ends)
        return [
            {"pixel_values": pixels, "image_grid_thw": grids[i : i + 1]}
            for i, pixels in enumerate(patches[: len(grids)])
        ]

    def split_frames(self, features: Features) -> Sequence[Features]:
        ((num_frames, rows, columns),) = features["image_grid_thw"]
        grid = np.array([[1, rows, columns]])
        return [
            {"pixel_values": pixels, "image_grid_thw": grid}
            for pixels in np.split(features["pixel_values"], num_frames)
        ]

    def encoder_feeds(self, images: Sequence[Features]) -> dict[str, np.ndarray]:
        grids = np.concatenate([image["image_grid_thw"] for image in images])
        pixels = [image["pixel_values"] for image in images]
        position_ids, frame_ids = plan_patches(grids, self._merge)
        slots, place = plan_groups(frame_ids, int(np.bincount(frame_ids).max()))
        return {
            "pixel_values": pixels[0] if len(pixels) == 1 else np.concatenate(pixels),
            "position_ids": position_ids,
            "image_slots": slots,
            "image_place": place,
        }

    def split_embeds(self, embeds: np.ndarray, images: Sequence[Features]) -> list[np.ndarray]:
        counts = [int(image["image_grid_thw"].prod()) // self._merge**2 for image in images]
        return np.split(embeds, np.cumsum(counts)[:-1])

    def positions(self, token_ids: np.ndarray, images: Sequence[Features]) -> np.ndarray:
        """M-RoPE: text moves all three axes on by one; an image spans its grid from where it stands.

        A video is as wide or high as one of its frames, however long it is.

        Source: `Qwen2_5_VLModel.get_rope_index` in transformers 5.23.
        """
        positions = np.empty((3, len(token_ids)), np.int64)
        starts = np.flatnonzero(self.is_image_token(token_ids))
        token, position = 0, 0
        for image in images:
            start = int(starts[np.searchsorted(starts, token)])
            positions[:, token:start] = np.arange(position, position + start - token)
            position += start - token
            t, h, w = image["image_grid_thw"][0] // (1, self._merge, self._merge)
            token = start + int(t * h * w)
            grid = np.indices((t, h, w)).reshape(3, -1)
            grid[0] = grid[0].astype(np.float32) * self._positions_per_patch(image)
            positions[:, start:token] = grid + position
            position += int(max(h, w))
        positions[:, token:] = np.arange(position, position + len(token_ids) - token)
        return positions

    def _positions_per_patch(self, image: Features) -> np.float32:
        """How far frames are from each other in time."""
        return np.float32(1)


def plan_patches(grids: np.ndarray, merge: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each patch is, and which frame it belongs to.

    Args:
        grids: int64 [num_images, 3], frames, rows and columns of patches of each image.
        merge: side of the square of patches that becomes one embedding; patches are ordered by it.

    Returns:
        position_ids int64 [N, 2] (row, column), frame_ids int64 [N].
    """
    positions, frames = [], []
    num_frames = 0
    for t, h, w in grids.tolist():
        order = (h // merge, merge, w // merge, merge)
        row, column = (a.reshape(order).transpose(0, 2, 1, 3).ravel() for a in np.indices((h, w)))
        positions += [np.stack([row, column], axis=1)] * t
        frames.append(np.repeat(np.arange(num_frames, num_frames + t), h * w))
        num_frames += t
    return np.concatenate(positions), np.concatenate(frames)


def plan_groups(group_ids: np.ndarray, num_slots: int) -> tuple[np.ndarray, np.ndarray]:
    """Gather indices that put each patch into a slot of its group, and back.

    Args:
        group_ids: int64 [N], 0 to G - 1.
        num_slots: L, at least the size of the largest group.

    Returns:
        slots int64 [G, L], the patch in each slot, -1 where empty; place int64 [N], the inverse
        into the flattened slots.
    """
    order = np.argsort(group_ids, kind="stable")
    groups = group_ids[order]
    first = np.searchsorted(groups, np.arange(groups[-1] + 1))
    at = groups * num_slots + np.arange(len(groups)) - first[groups]
    slots = np.full((groups[-1] + 1) * num_slots, -1, np.int64)
    slots[at] = order
    place = np.empty(len(groups), np.int64)
    place[order] = at
    return slots.reshape(-1, num_slots), place
