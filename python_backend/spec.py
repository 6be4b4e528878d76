"""`GraphSpec`: the contract of one graph, declared once by the builder and checked by every runtime."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from python_backend.errors import EngineError

Dim = int | str


class ArrayLike(Protocol):
    """What a spec can check: numpy and cupy arrays alike."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Size of each axis."""

    @property
    def dtype(self) -> Any:
        """Prints as a numpy dtype name."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a graph.

    Attributes:
        name: tensor name in the ONNX file and in the engine.
        dtype: numpy dtype name, `float32`, `float16`, `bfloat16`, `int64`, `int32` or `bool`.
        shape: an int per fixed axis, a name per dynamic axis; equal names mean equal sizes.
    """

    name: str
    dtype: str
    shape: tuple[Dim, ...]

    @property
    def num_fixed_bytes(self) -> int:
        """Bytes of one element of the dynamic axes: the product of the fixed axes times item size."""
        item = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "bool": 1}
        return item[self.dtype] * math.prod(dim for dim in self.shape if isinstance(dim, int))

    def check(self, array: ArrayLike, axes: dict[str, int]) -> None:
        """Raise `EngineError` unless `array` fits; sizes of dynamic axes are bound in `axes`."""
        if str(array.dtype) != self.dtype:
            raise EngineError(f"tensor {self.name} is {array.dtype}, the graph takes {self.dtype}")
        if len(array.shape) != len(self.shape):
            raise EngineError(
                f"tensor {self.name} has shape {array.shape}, the graph takes {self.shape}"
            )
        for size, dim in zip(array.shape, self.shape, strict=True):
            expected = axes.setdefault(dim, size) if isinstance(dim, str) else dim
            if size != expected:
                raise EngineError(
                    f"tensor {self.name} has shape {array.shape}: axis {dim} should be {expected}"
                )


@dataclass(frozen=True, slots=True)
class GraphSpec:
    """Inputs and outputs of one graph, in order.

    Attributes:
        name: `vision_encoder`, `cross_attention` or `decoder`.
        inputs: everything that must be fed.
        outputs: everything that is computed.
        aliases: output name to the input whose memory it shares (the KV cache, updated in place).
        takes_whole_images: whether an image's tokens must come in one call, because they see each
            other both ways.
        cross_inputs: inputs that are memory of the cache too, but only read: the graph `cross_attention`
            fills them once per request.
        num_token_ids: rows of the embedding table, where they are not as many as there are logits.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    aliases: Mapping[str, str]
    takes_whole_images: bool = False
    cross_inputs: tuple[str, ...] = ()
    num_token_ids: int | None = None

    def input(self, name: str) -> TensorSpec:
        """The input called `name`; KeyError if there is none."""
        return _find(self.inputs, name)

    def output(self, name: str) -> TensorSpec:
        """The output called `name`; KeyError if there is none."""
        return _find(self.outputs, name)

    @property
    def fed_inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs that change from call to call: all but the cache."""
        cache = {*self.aliases.values(), *self.cross_inputs}
        return tuple(spec for spec in self.inputs if spec.name not in cache)

    @property
    def computed_outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs that have memory of their own: all but the aliased ones."""
        return tuple(spec for spec in self.outputs if spec.name not in self.aliases)

    def check(self, feeds: Mapping[str, ArrayLike]) -> None:
        """Raise `EngineError` unless `feeds` are exactly `fed_inputs`, and dtypes and shapes fit."""
        specs = self.fed_inputs
        if feeds.keys() != {spec.name for spec in specs}:
            wanted = [spec.name for spec in specs]
            raise EngineError(f"graph {self.name} takes {wanted}, not {list(feeds)}")
        axes: dict[str, int] = {}
        for spec in specs:
            spec.check(feeds[spec.name], axes)

    def to_json(self) -> dict[str, Any]:
        """The form stored in the manifest."""
        return {
            "name": self.name,
            "inputs": [[spec.name, spec.dtype, list(spec.shape)] for spec in self.inputs],
            "outputs": [[spec.name, spec.dtype, list(spec.shape)] for spec in self.outputs],
            "aliases": dict(self.aliases),
            "takes_whole_images": self.takes_whole_images,
            "cross_inputs": list(self.cross_inputs),
            "num_token_ids": self.num_token_ids,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> GraphSpec:
        """The inverse of `to_json`."""

        def tensors(rows: list[Any]) -> tuple[TensorSpec, ...]:
            return tuple(TensorSpec(name, dtype, tuple(shape)) for name, dtype, shape in rows)

        return cls(
            data["name"],
            tensors(data["inputs"]),
            tensors(data["outputs"]),
            data["aliases"],
            data["takes_whole_images"],
            tuple(data["cross_inputs"]),
            data["num_token_ids"],
        )


def _find(specs: tuple[TensorSpec, ...], name: str) -> TensorSpec:
    for spec in specs:
        if spec.name == name:
            return spec
    raise KeyError(name)
