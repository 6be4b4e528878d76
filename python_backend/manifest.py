"""`Manifest`: what was built, written by the builder and read-only afterwards."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from python_backend.errors import BundleError, InvalidRequestError
from python_backend.sampling_params import SamplingParams
from python_backend.spec import GraphSpec

FORMAT_VERSION = 6
FILE_NAME = "manifest.json"
PROCESSOR_DIR = "processor"
VERSION_DIR = "1"
"""Triton's version directory; a bundle has one version."""
DETOKENIZER_FILE = "detokenizer.json"
"""In the processor's folder: the tokenizer without what only turns text into tokens."""
CPU = "cpu"
"""The target of graphs that ONNX Runtime runs; those of TensorRT are GPUs, such as `sm89`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphFile:
    """One built graph.

    Attributes:
        paths: target to the file that runs on it, relative to the model repository.
        spec: its contract.
        files: path relative to the repository to sha256, of what was built and of its weights.
        costs: target to what building its engine took: `seconds`, `peak_bytes` of memory, `engine_bytes`.
    """

    paths: Mapping[str, str]
    spec: GraphSpec
    files: Mapping[str, str]
    costs: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything the stages need to know about a model.

    Attributes:
        name: of the Triton ensemble; the stages' names derive from it.
        served_model_name: the id clients use, such as a hub id.
        model_type: the family.
        config: the checkpoint's normalized config.json.
        engine: what runs the graphs: onnxruntime, tensorrt or tensorrt_rtx.
        precision: of the graphs.
        max_model_len: context, prompt and output together, in tokens.
        max_seqs: choices generated at once, at most.
        max_images: images in one prompt, at most; 0 for a model that reads text only.
        eos_token_ids: tokens that end an answer.
        sampling_defaults: from generation_config.json, for what a request leaves open.
        processor_fingerprint: changes when tokenizer or image processing change.
        vision_encoder: graph from pixels to embeddings; None for a model that reads text only.
        decoder: graph from tokens to logits.
        tool_format: how it writes tool calls, a name of `tool_calls.FORMATS`; None if it takes no tools.
        reasoning_marks: texts of the tokens around its reasoning; None if it does not reason.
        takes_videos: whether a prompt may have any.
        cross_attention: graph from embeddings to the keys and values that the decoder's cross-attention
            layers read; None if it has none.
        source: where the checkpoint came from, and what it was when it was built.
        versions: of the libraries that built it.
        verification: what it was compared with and the errors found; empty if it was not.
    """

    name: str
    served_model_name: str
    model_type: str
    config: Mapping[str, Any]
    engine: str
    precision: str
    max_model_len: int
    max_seqs: int
    max_images: int
    eos_token_ids: tuple[int, ...]
    sampling_defaults: Mapping[str, float]
    processor_fingerprint: str
    vision_encoder: GraphFile | None
    decoder: GraphFile
    cross_attention: GraphFile | None = None
    tool_format: str | None = None
    reasoning_marks: tuple[str, str] | None = None
    takes_videos: bool = False
    source: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    verification: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sees_images(self) -> bool:
        """Whether the model reads more than text: it has an encoder stage then."""
        return self.vision_encoder is not None

    @property
    def graphs(self) -> tuple[GraphFile, ...]:
        """Every graph of the model."""
        graphs = (self.vision_encoder, self.cross_attention, self.decoder)
        return tuple(graph for graph in graphs if graph is not None)

    def read_sampling(self, given: object) -> SamplingParams:
        """The sampling parameters of a request; what it leaves open comes from the model's defaults.

        Raises:
            InvalidRequestError: a parameter is unknown, of the wrong type or out of range.
        """
        if not isinstance(given, Mapping):
            raise InvalidRequestError("sampling must be a JSON object", param="sampling")
        return SamplingParams.from_json(json.dumps({**self.sampling_defaults, **given}))

    def to_json(self) -> str:
        """The text of manifest.json."""
        data = {"format_version": FORMAT_VERSION, **asdict(self)}
        for graph in self.graphs:
            data[graph.spec.name]["spec"] = graph.spec.to_json()
        return json.dumps(data, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """The inverse of `to_json`.

        Raises:
            BundleError: the text is not a manifest of this format version.
        """
        try:
            data = json.loads(text)
            version = data.pop("format_version")
            if version != FORMAT_VERSION:
                raise BundleError(
                    f"the model was built in format {version}, this version reads {FORMAT_VERSION}: "
                    "build it again"
                )
            for graph in ("vision_encoder", "cross_attention", "decoder"):
                if graph != "decoder" and data[graph] is None:
                    continue
                spec = GraphSpec.from_json(data[graph].pop("spec"))
                data[graph] = GraphFile(spec=spec, **data[graph])
            data["eos_token_ids"] = tuple(data["eos_token_ids"])
            if data.get("reasoning_marks") is not None:
                data["reasoning_marks"] = tuple(data["reasoning_marks"])
            return cls(**data)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BundleError(
                f"the manifest is damaged ({error!r}): build the model again"
            ) from error


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A built model in a Triton model repository.

    Attributes:
        folder: `<repository>/<name>`, the ensemble's folder.
        manifest: what is in it.
    """

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: Path, *, allow_unverified: bool = False) -> ModelFolder:
        """Read the manifest of a model folder.

        Args:
            folder: `<repository>/<name>`.
            allow_unverified: accept a model that was built with `--skip-verify`.

        Raises:
            BundleError: there is none, it is damaged, files are missing, or nobody verified it.
        """
        path = folder / VERSION_DIR / FILE_NAME
        try:
            manifest = Manifest.from_json(path.read_bytes())
        except FileNotFoundError:
            raise BundleError(
                f"{folder} holds no built model: run builders/build.py --model <checkpoint>"
            ) from None
        if not manifest.verification and not allow_unverified:
            raise BundleError(
                f"{folder} was built without verification: build it again without --skip-verify, or "
                "allow unverified models"
            )
        for graph in manifest.graphs:
            for file in graph.files:
                if not (folder.parent / file).exists():
                    raise BundleError(f"{folder.parent / file} is missing: build the model again")
        return cls(folder, manifest)

    @property
    def processor_dir(self) -> Path:
        """Tokenizer and image-processor files."""
        return self.folder / VERSION_DIR / PROCESSOR_DIR

    @property
    def detokenizer_path(self) -> Path:
        """The tokenizer, as far as ids become text."""
        return self.processor_dir / DETOKENIZER_FILE

    def path(self, graph: GraphFile, target: str = CPU) -> Path:
        """The file of a graph for a target.

        Raises:
            BundleError: it was not built for that target.
        """
        try:
            return self.folder.parent / graph.paths[target]
        except KeyError:
            raise BundleError(
                f"{self.manifest.name} was built for {', '.join(graph.paths)} and not for {target}: "
                f"build it with --gpu {target}"
            ) from None
