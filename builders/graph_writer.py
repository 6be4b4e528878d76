"""Graphs and engines as files of a model repository, and what of the last build can be kept."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx_ir as ir

from builders.blocks import use_packed
from builders.digests import code_digest, digest, file_digest, versions
from builders.engines import Costs, build_engines
from builders.fused_products import fuse_products
from builders.graph import write_graph
from builders.modules import fill_weights
from builders.options import BuildOptions
from builders.precision import Precision
from builders.profiles import Profile
from builders.report import Report
from builders.source import Source
from builders.trt_engine import trt_version
from python_backend.manifest import CPU, VERSION_DIR, GraphFile, ModelFolder
from python_backend.spec import GraphSpec


class GraphWriter:
    """Writes graphs with their weights, or takes over those of the last build that would be the same.

    For TensorRT what is written is the engines; the graphs they are built from are deleted.
    """

    def __init__(
        self,
        staging: Path,
        source: Source,
        checkpoint_names: Callable[[str], tuple[str, ...]],
        options: BuildOptions,
        report: Report,
        existing: ModelFolder | None,
    ) -> None:
        self._staging, self._source, self._report = staging, source, report
        self._options = options
        self._checkpoint_names, self._existing = checkpoint_names, existing
        self.keys: dict[str, str] = {}

    def write(
        self,
        model: str,
        built: tuple[ir.Model, GraphSpec],
        precision: Precision,
        profiles: Sequence[Profile],
    ) -> GraphFile:
        """Write one graph.

        Args:
            model: Triton model whose folder it goes to.
            built: the graph without numbers, and its contract.
            precision: of its weights.
            profiles: sizes of its axes, for TensorRT.
        """
        graph, spec = built
        variant: tuple[object, ...] = precision, spec
        if not self._is_for_cpu:
            engine = self._options.engine
            variant = *variant, engine, self._options.targets, profiles, trt_version(engine)
        key = digest(
            self._source.checkpoint.fingerprint(), *versions().values(), code_digest(), variant
        )
        self.keys[spec.name] = key
        self._report.stage(f"Writing the graph {spec.name}")
        folder = self._staging / model / VERSION_DIR
        folder.mkdir(parents=True, exist_ok=True)
        unchanged = self._take_over(spec.name, key, folder)
        if unchanged is not None:
            return unchanged
        path = folder / f"{spec.name}.onnx"
        use_packed(graph.graph, self._checkpoint_names, self._source.packed)
        fill_weights(graph.graph, self._source.checkpoint, self._checkpoint_names)
        if self._is_for_cpu:
            fuse_products(graph.graph)
        write_graph(graph, path, self._report.progress)
        paths, costs = {CPU: path}, Costs()
        if not self._is_for_cpu:
            paths, costs = build_engines(
                path,
                spec,
                profiles,
                self._options.engine,
                self._options.targets,
                self._report.stage,
            )
            for file in folder.glob(f"{path.name}*"):
                file.unlink()
        for target, cost in costs.items():
            self._report.note(
                f"{spec.name} for {target}: {cost['engine_bytes'] / 1e6:.1f} MB in {cost['seconds']} s, "
                f"{cost['peak_bytes'] / 1e9:.1f} GB of memory"
            )
        files = sorted(folder.glob(f"{spec.name}.*"))
        return GraphFile(
            paths={target: self._name(path) for target, path in paths.items()},
            spec=spec,
            files={self._name(file): file_digest(file) for file in files},
            costs=costs,
        )

    @property
    def _is_for_cpu(self) -> bool:
        return self._options.engine == "onnxruntime"

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self._staging))

    def _take_over(self, name: str, key: str, folder: Path) -> GraphFile | None:
        if self._existing is None or self._existing.manifest.source.get(name) != key:
            return None
        graph = next(g for g in self._existing.manifest.graphs if g.spec.name == name)
        for file in graph.files:
            source = self._existing.folder.parent / file
            os.link(source, folder / source.name)
        self._report.note(f"the graph {name} has not changed")
        return graph
