"""What a family tells the builder: its graphs, and the names of its weights in a checkpoint."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from onnxscript import nn

from builders.graph import declare_inputs, declare_outputs, new_graph, to_model
from builders.precision import Precision
from builders.profiles import Profile
from python_backend.families.base import Features
from python_backend.spec import GraphSpec, TensorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildLimits:
    """Sizes that are fixed when a graph is built.

    Attributes:
        max_model_len: cache capacity per row, prompt and output together, in tokens.
        max_images: images in one prompt, at most: what a row holds for cross-attention.
        max_shared_patches: vision patches of several pictures that share a call of a TensorRT engine.
    """

    max_model_len: int
    max_images: int
    max_shared_patches: int = 1024


class FamilyGraphs(ABC):
    """Builds the graphs of one checkpoint.

    Args:
        config: the checkpoint's config.json as the family's Hugging Face config class reads it, so
            that every field has its default and every layout of the file looks alike.
    """

    architectures: ClassVar[tuple[str, ...]]
    sees_images: ClassVar[bool] = True
    """Whether there is a vision encoder; the methods about images are called only then."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config

    def vision_encoder(self, precision: Precision) -> tuple[ir.Model, GraphSpec]:
        """The graph from encoder feeds to image embeddings, without numbers, and its contract."""
        spec = GraphSpec(
            name="vision_encoder",
            inputs=self.vision_inputs(),
            outputs=(TensorSpec("image_embeds", "float32", ("M", self.embeds_size)),),
            aliases={},
        )
        builder = new_graph(spec)
        feeds = declare_inputs(builder, spec, precision.compute)
        embeds = self.tower(precision.tower)(builder.op, feeds)
        if precision.compute != ir.DataType.FLOAT:
            embeds = builder.op.Cast(embeds, to=ir.DataType.FLOAT)
        declare_outputs(builder, spec, [embeds])
        return to_model(builder), spec

    def vision_inputs(self) -> tuple[TensorSpec, ...]:
        """What the vision encoder is fed."""
        raise NotImplementedError

    def vision_profiles(self, limits: BuildLimits) -> tuple[Profile, ...]:
        """Sizes of the vision encoder's axes in a TensorRT engine; a picture's tokens fit the context."""
        raise NotImplementedError

    def tower(self, precision: Precision) -> nn.Module:
        """The vision encoder: (op, feeds) to embeddings [M, `embeds_size`]."""
        raise NotImplementedError

    @property
    def embeds_size(self) -> int:
        """Numbers of one image embedding."""
        return int(self.config["text_config"]["hidden_size"])

    @abstractmethod
    def decoder(self, precision: Precision, limits: BuildLimits) -> tuple[ir.Model, GraphSpec]:
        """The graph from tokens and image embeddings to logits, without numbers, and its contract."""

    def cross_attention(
        self, precision: Precision, limits: BuildLimits
    ) -> tuple[ir.Model, GraphSpec] | None:
        """The graph that fills what the decoder's cross-attention layers read; None if there are none."""
        return None

    def reference_inputs(self, images: Sequence[Features]) -> dict[str, np.ndarray]:
        """What the Hugging Face model takes of a prompt's images, at least one, for verification."""
        return {name: np.concatenate([image[name] for image in images]) for name in images[0]}

    def reference_prompt_inputs(
        self, token_ids: np.ndarray, images: Sequence[Features]
    ) -> dict[str, np.ndarray]:
        """What it takes besides, to generate from a prompt [S] with images."""
        return {}

    def reference_embeds(self, model: Any, inputs: Mapping[str, Any]) -> list[Any]:
        """What its tower makes of `reference_inputs`, as torch tensors: lists of images' rows, or all rows.

        Parts that stand beside each other in an embedding are elements of their own.
        """
        features = model.get_image_features(**inputs)
        # What the first decoder layers add (DeepStack) stands beside what takes the token's place.
        return [features.pooler_output, *getattr(features, "deepstack_features", ())]

    @abstractmethod
    def checkpoint_names(self, path: str) -> tuple[str, ...]:
        """Names the weight at `path` of a graph has in checkpoints, in order of preference."""


def nested_names(path: str, *, is_tied: bool) -> tuple[str, ...]:
    """Names in checkpoints that hold a whole language model `language_model` beside a `vision_tower`.

    Args:
        path: of a graph's weight.
        is_tied: whether the head is the embedding table.
    """
    if path == "lm_head.weight":
        if not is_tied:
            return "language_model.lm_head.weight", path
        path = "model.embed_tokens.weight"
    # The hub's layouts first, then the names inside transformers 5.
    if path.startswith("model."):
        rest = path.removeprefix("model.")
        return f"language_model.model.{rest}", f"model.language_model.{rest}"
    if path.startswith("vision_tower."):
        rest = path.removeprefix("vision_tower.")
        return f"vision_tower.vision_model.{rest}", path, f"model.{path}"
    return path, f"model.{path}"
