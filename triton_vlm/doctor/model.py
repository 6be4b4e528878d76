"""A model, built or not, as the numbers that its memory follows from. No weight is read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triton_vlm.doctor.memory import Activations, Footprint, cache_size
from triton_vlm.launch_error import LaunchError

if TYPE_CHECKING:
    import onnx_ir as ir

    from builders.packed import PackedLinear
    from builders.precision import Precision
    from python_backend.gpu import Gpu
    from python_backend.manifest import Manifest

PROGRAM_BYTES = 512 * 2**20
"""tritonserver, the three stages and the proxy without a model's weights: 0.28 GB (proportional set
size) with the default model, more with a tokenizer of 150,000 words."""
GPU_CONTEXT_BYTES = 2**30
"""CUDA's context, TensorRT's kernels and workspace: an allowance that no GPU has confirmed."""
SCORES_ITEM_BYTES = 4
DEFAULT_MAX_SEQS = 16
DEFAULT_MAX_MODEL_LEN = 4096
DEFAULT_MAX_IMAGES = 16
"""What the builder takes when nobody says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What was named on the command line.

    Attributes:
        name: of it.
        config: the normalized config.json.
        manifest: what was built, None for a checkpoint.
        repository: where it was built, None for a checkpoint.
        packed: layers that the checkpoint has quantized, as far as its weights are there.
    """

    name: str
    config: Mapping[str, Any]
    manifest: Manifest | None = None
    repository: Path | None = None
    packed: Mapping[str, PackedLinear] = field(default_factory=dict)

    @property
    def text_config(self) -> Mapping[str, Any]:
        """The part of the config that is about the decoder: all of it if the model reads text only."""
        config: Mapping[str, Any] = self.config.get("text_config", self.config)
        return config

    @property
    def max_position(self) -> int:
        """The longest context the checkpoint was made for."""
        return int(self.text_config["max_position_embeddings"])

    @property
    def limits(self) -> tuple[int, int]:
        """`max_seqs` and `max_model_len` that were built, or that a build takes by itself."""
        if self.manifest is not None:
            return self.manifest.max_seqs, self.manifest.max_model_len
        return DEFAULT_MAX_SEQS, min(self.max_position, DEFAULT_MAX_MODEL_LEN)

    @property
    def is_for_cpu(self) -> bool:
        """Whether it was built for ONNX Runtime."""
        return self.manifest is not None and self.manifest.engine == "onnxruntime"

    @property
    def num_sliding_layers(self) -> int:
        """Layers that look back through a window only."""
        return list(self.text_config.get("layer_types") or ()).count("sliding_attention")


def read_model(model: str, repository: Path) -> Model:
    """Understand what a person named.

    Args:
        model: folder or name of a built model, checkpoint folder, or a config.json.
        repository: folder of built models.

    Raises:
        LaunchError: it is none of these, or of a kind nobody has written.
    """
    from python_backend.errors import BundleError
    from python_backend.manifest import FILE_NAME, VERSION_DIR, ModelFolder

    path = Path(model).expanduser()
    try:
        for folder in (path, repository / model):
            if (folder / VERSION_DIR / FILE_NAME).is_file():
                manifest = ModelFolder.open(folder, allow_unverified=True).manifest
                return Model(
                    name=manifest.name,
                    config=manifest.config,
                    manifest=manifest,
                    repository=folder.parent,
                )
        folder = path.parent if path.name == "config.json" else path
        if (folder / "config.json").is_file():
            config, packed = _normalized(folder), _packed(folder)
            return Model(name=folder.resolve().name, config=config, packed=packed)
    except BundleError as error:
        raise LaunchError(str(error)) from error
    raise LaunchError(
        f"{model} is neither a built model, nor built in {repository}, nor a folder with a "
        "config.json: build it, or give the checkpoint's folder"
    )


def _normalized(folder: Path) -> Mapping[str, Any]:
    """config.json as the family's config class reads it, if this project has the family."""
    from transformers import AutoConfig

    from builders.families import family_graphs

    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        family_graphs(str(raw.get("model_type")))
        return dict(AutoConfig.from_pretrained(folder, trust_remote_code=False).to_dict())
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise LaunchError(f"{folder}/config.json cannot be used: {error}") from error


def _packed(folder: Path) -> Mapping[str, PackedLinear]:
    """Quantized layers of a checkpoint, unless only its config.json is there."""
    from builders.checkpoint import Checkpoint, read_config
    from builders.packed import packed_linears
    from builders.refusals import check_quantization

    config = read_config(folder)
    packing = check_quantization(str(folder), config, engine="onnxruntime", precision="fp32")
    if packing is None or not any(folder.glob("*.safetensors")):
        return {}
    return packed_linears(Checkpoint(folder), packing)


def host_footprint(model: Model, free_bytes: int) -> Footprint:
    """The model in ONNX Runtime on the CPU: as it was built, or as fp32 would be."""
    from builders.precision import Precision
    from python_backend.config import EngineConfig

    max_model_len = model.limits[1]
    if model.is_for_cpu and model.manifest is not None and model.repository is not None:
        precision = model.manifest.precision
        graphs = model.manifest.graphs
        files = {model.repository / file for graph in graphs for file in graph.files}
        weights_bytes = sum(file.stat().st_size for file in files)
        spec = model.manifest.decoder.spec
    else:
        precision = "fp32"
        spec, weights_bytes = _graphs(model, Precision.for_cpu(precision), max_model_len)
    engine = EngineConfig()
    return Footprint(
        device="Host",
        precision=precision,
        weights_bytes=weights_bytes,
        cache=cache_size(spec, max_model_len),
        activations=_activations(model, score_heads=_num_heads(model.text_config)),
        fixed_bytes=PROGRAM_BYTES
        + engine.encoder_cache_bytes
        # One attention of a whole picture: the scores of every patch with every other.
        + (_num_heads(model.config["vision_config"]) if "vision_config" in model.config else 0)
        * engine.max_encoder_patches**2
        * SCORES_ITEM_BYTES,
        chunk=engine.max_num_batched_tokens,
        free_bytes=free_bytes,
    )


def gpu_footprint(model: Model, index: int, gpu: Gpu, host_free_bytes: int) -> Footprint:
    """The model as engines on a GPU: as they were built, or as bfloat16 would be."""
    from builders.precision import Precision
    from python_backend.config import EngineConfig

    max_model_len = model.limits[1]
    precision = "bf16"
    if model.manifest is not None and not model.is_for_cpu:
        precision = model.manifest.precision
    spec, weights_bytes = _graphs(model, Precision.for_gpu(precision), max_model_len)
    engine = EngineConfig()
    return Footprint(
        device=f"GPU {index}",
        precision=precision,
        weights_bytes=weights_bytes,
        cache=cache_size(spec, max_model_len),
        activations=_activations(model, score_heads=0),
        fixed_bytes=GPU_CONTEXT_BYTES + engine.encoder_cache_bytes,
        chunk=engine.max_num_batched_tokens,
        free_bytes=host_free_bytes if gpu.free_bytes is None else gpu.free_bytes,
    )


def _graphs(model: Model, precision: Precision, max_model_len: int) -> tuple[Any, int]:
    """The decoder's contract, and the bytes of the weights of both graphs; without any weight."""
    from builders.blocks import use_packed
    from builders.families import family_graphs
    from builders.families.base import BuildLimits

    graphs = family_graphs(str(model.config["model_type"]))(model.config)
    max_images = DEFAULT_MAX_IMAGES if model.manifest is None else model.manifest.max_images
    limits = BuildLimits(max_model_len=max_model_len, max_images=max_images)
    decoder = graphs.decoder(precision, limits)
    built = [decoder, graphs.cross_attention(precision, limits)]
    if graphs.sees_images:
        built.append(graphs.vision_encoder(precision))
    models = [pair[0] for pair in built if pair is not None]
    for built_model in models:
        use_packed(built_model.graph, graphs.checkpoint_names, model.packed)
    return decoder[1], sum(_weights_bytes(model.graph.initializers.values()) for model in models)


def _weights_bytes(values: Iterable[ir.Value]) -> int:
    num_bits = 0
    for value in values:
        if value.shape is not None and value.dtype is not None:
            num_elements = 1
            for dim in value.shape.numpy():
                num_elements *= dim
            num_bits += num_elements * value.dtype.bitwidth
    return num_bits // 8


def _activations(model: Model, *, score_heads: int) -> Activations:
    text = model.text_config
    return Activations(
        hidden_size=int(text["hidden_size"]),
        intermediate_size=int(text["intermediate_size"]),
        vocab_size=int(text["vocab_size"]),
        score_heads=score_heads,
        item_bytes=4 if score_heads else 2,
    )


def _num_heads(config: Mapping[str, Any]) -> int:
    """Attention heads of a part of the model: Hugging Face has three names for the number."""
    names = ("num_attention_heads", "num_heads", "attention_heads")
    return next(int(config[name]) for name in names if config.get(name))
