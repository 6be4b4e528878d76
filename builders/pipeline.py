"""The build: checkpoint -> graphs -> configs -> verified -> moved into the model repository.

Everything is made in a staging folder beside the repository's models and moved into place at the
end, so that a build that fails leaves what was there before.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path

from transformers import AutoTokenizer

from builders.digests import code_digest, digest, versions
from builders.families import family_graphs
from builders.families.base import BuildLimits
from builders.graph_writer import GraphWriter
from builders.options import BuildOptions
from builders.precision import Precision
from builders.profiles import cross_profile, decoder_profiles
from builders.reference import Reference, find_reference
from builders.report import Report
from builders.repository import write_repository
from builders.source import Source, open_source
from builders.verify import COMPUTE_TOLERANCE, CaseResult, verify
from python_backend import tensor_names as names
from python_backend.config import EngineConfig
from python_backend.errors import BundleError
from python_backend.families import load_family
from python_backend.families.base import ModelFamily
from python_backend.gpu import find_gpu
from python_backend.manifest import (
    DETOKENIZER_FILE,
    FILE_NAME,
    PROCESSOR_DIR,
    VERSION_DIR,
    Manifest,
    ModelFolder,
)

_PROCESSOR_FILES = (
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "config.json",
)
_DEFAULT_MAX_MODEL_LEN = 4096
_STAGES = ("", names.PREPROCESS_SUFFIX, names.ENCODER_SUFFIX, names.DECODER_SUFFIX)


def build(options: BuildOptions, report: Report) -> tuple[ModelFolder, list[CaseResult]]:
    """Build a model into the repository.

    Returns:
        The model, and how far it is from the reference; no results if nothing had to be built.

    Raises:
        BundleError: the checkpoint cannot be served.
        ParityError: the graphs do not give the reference's numbers.
    """
    report.stage("Reading the checkpoint")
    source = open_source(options.model, engine=options.engine, precision=options.precision)
    if source.quantization:
        report.note(
            f"quantized already ({source.quantization}): its {len(source.packed)} layers stay as they are"
        )
    max_model_len = _max_model_len(options, source)
    key = digest(
        source.checkpoint.fingerprint(),
        *versions().values(),
        code_digest(),
        options,
        options.targets,
        max_model_len,
    )
    existing = _existing(options)
    if existing is not None and existing.manifest.source.get("build_key") == key:
        report.note("nothing has changed since the last build")
        return existing, []
    options.output.mkdir(parents=True, exist_ok=True)
    with _staging(options.output) as staging:
        precision = options.number_formats
        manifest = _build_into(staging, options, precision, source, max_model_len, report, existing)
        manifest = replace(manifest, source={**manifest.source, "build_key": key})
        results: list[CaseResult] = []
        if not options.skip_verify:
            with _runnable(staging, options, manifest, source, max_model_len, report) as model:
                in_fp32 = precision.computed_in_fp32
                reference = find_reference(model, in_fp32, source, report.stage)
                report.stage("Comparing with the reference")
                results = verify(
                    model,
                    reference.cases,
                    reference.logits_tolerance,
                    reference.embeds_tolerance,
                )
            verification = {"reference": reference.name, **_summary(results)}
            if options.targets:
                of_engine = _verify_engine(staging, options, manifest, reference, report)
                verification["engines"] = {
                    gpu: _summary(of_engine[gpu]) if gpu in of_engine else "not run"
                    for gpu in options.targets
                }
                results += chain.from_iterable(of_engine.values())
            manifest = replace(manifest, verification=verification)
        _write_manifest(staging, manifest)
        _move_into_place(staging, options.output, manifest.name)
    folder = options.output / manifest.name
    return ModelFolder.open(folder, allow_unverified=options.skip_verify), results


def _max_model_len(options: BuildOptions, source: Source) -> int:
    limit = int(source.text_config["max_position_embeddings"])
    wanted = options.max_model_len
    if wanted is None:
        return min(limit, _DEFAULT_MAX_MODEL_LEN)
    if wanted > limit:
        raise BundleError(f"--max-model-len {wanted} is more than the checkpoint's {limit}")
    return wanted


def _existing(options: BuildOptions) -> ModelFolder | None:
    """The model as it was built before, if it is whole."""
    try:
        return ModelFolder.open(options.output / options.triton_name, allow_unverified=True)
    except BundleError:
        return None


@contextmanager
def _staging(output: Path) -> Iterator[Path]:
    # In the repository's own file system, so that moving is renaming.
    folder = Path(tempfile.mkdtemp(prefix=".building-", dir=output))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _build_into(
    staging: Path,
    options: BuildOptions,
    precision: Precision,
    source: Source,
    max_model_len: int,
    report: Report,
    existing: ModelFolder | None,
) -> Manifest:
    name, runtime = options.triton_name, EngineConfig()
    graphs = family_graphs(source.config["model_type"])(source.config)
    limits = BuildLimits(
        max_model_len=max_model_len,
        max_images=options.max_images,
        max_shared_patches=runtime.max_encoder_patches,
    )
    writer = GraphWriter(staging, source, graphs.checkpoint_names, options, report, existing)
    vision = None
    if graphs.sees_images:
        vision = writer.write(
            name + names.ENCODER_SUFFIX,
            graphs.vision_encoder(precision),
            precision.tower,
            graphs.vision_profiles(limits),
        )
    decoder_folder = name + names.DECODER_SUFFIX
    cross = graphs.cross_attention(precision, limits)
    filling = None
    if cross is not None:
        filling = writer.write(decoder_folder, cross, precision, [cross_profile(cross[1])])
    chunk = min(runtime.max_num_batched_tokens, max_model_len)
    decoder = writer.write(
        decoder_folder,
        graphs.decoder(precision, limits),
        precision,
        decoder_profiles(options.max_seqs, chunk, max_model_len),
    )
    report.stage("Writing tokenizer, processor and Triton models")
    processor_dir = staging / name / VERSION_DIR / PROCESSOR_DIR
    _copy_processor(source.checkpoint.folder, processor_dir)
    manifest = Manifest(
        name=name,
        served_model_name=source.model_id,
        model_type=source.config["model_type"],
        config=json.loads(json.dumps(source.config)),
        engine=options.engine,
        precision=options.precision,
        max_model_len=max_model_len,
        max_seqs=options.max_seqs,
        max_images=options.max_images if graphs.sees_images else 0,
        eos_token_ids=source.eos_token_ids,
        sampling_defaults=source.sampling_defaults,
        processor_fingerprint=digest(
            *(path.read_bytes() for path in sorted(processor_dir.iterdir())),
            importlib.metadata.version("transformers"),
        ),
        vision_encoder=vision,
        decoder=decoder,
        cross_attention=filling,
        source={"model": options.model, **writer.keys},
        versions=versions(),
    )
    family = _load_family(manifest, processor_dir, source.checkpoint.folder)
    manifest = replace(
        manifest,
        tool_format=family.template.tool_format,
        reasoning_marks=family.template.reasoning_marks,
        takes_videos=family.takes_videos,
    )
    write_repository(staging, manifest, family.encoder_tensors)
    return manifest


def _copy_processor(checkpoint: Path, target: Path) -> None:
    """The tokenizer as one tokenizer.json with its chat template, and the processors' configs."""
    target.mkdir(parents=True)
    try:
        AutoTokenizer.from_pretrained(checkpoint).save_pretrained(target)
    except Exception as error:
        raise BundleError(f"the tokenizer in {checkpoint} cannot be read: {error}") from error
    for name in _PROCESSOR_FILES:
        if (checkpoint / name).exists():
            shutil.copyfile(checkpoint / name, target / name)
    if not (target / "tokenizer.json").exists():
        raise BundleError(f"{checkpoint} has no fast tokenizer (tokenizer.json)")
    _write_detokenizer(target)


def _write_detokenizer(processor_dir: Path) -> None:
    """tokenizer.json without its merges: the decoder stage turns ids into text, and loads this in a third."""
    tokenizer = json.loads((processor_dir / "tokenizer.json").read_text(encoding="utf-8"))
    if tokenizer["model"]["type"] == "BPE":
        tokenizer["model"]["merges"] = []
    text = json.dumps(tokenizer, ensure_ascii=False)
    (processor_dir / DETOKENIZER_FILE).write_text(text, encoding="utf-8")


def _load_family(manifest: Manifest, processor_dir: Path, checkpoint: Path) -> ModelFamily:
    """The family as the stages will load it: its files must be whole."""
    try:
        family = load_family(manifest.config, processor_dir)
        family.load_processors()
        return family
    except BundleError:
        raise
    except Exception as error:
        raise BundleError(
            f"the tokenizer or the image processor in {checkpoint} cannot be used: {error}"
        ) from error


@contextmanager
def _runnable(
    staging: Path,
    options: BuildOptions,
    manifest: Manifest,
    source: Source,
    max_model_len: int,
    report: Report,
) -> Iterator[ModelFolder]:
    """What is verified: the staged model, or its graphs computed in fp32 if it is for a GPU."""
    if options.engine == "onnxruntime":
        yield _write_manifest(staging, manifest)
        return
    with _staging(staging) as twin:
        on_cpu = replace(options, engine="onnxruntime", precision="fp32", group_size=None, gpus=())
        precision = options.number_formats.computed_in_fp32
        built = _build_into(twin, on_cpu, precision, source, max_model_len, report, None)
        if precision.weight_bits is not None:
            built = replace(built, precision=options.precision)
        yield _write_manifest(twin, built)


def _verify_engine(
    staging: Path,
    options: BuildOptions,
    manifest: Manifest,
    reference: Reference,
    report: Report,
) -> dict[str, list[CaseResult]]:
    """Run the engine that is for this machine's GPU, if one is.

    Returns:
        Results by GPU, only of what was run.

    Raises:
        BundleError: the engine does not load.
        ParityError: it does not give the reference's numbers.
    """
    gpu = find_gpu()
    if gpu not in options.targets:
        report.note(
            f"no engine was run: they are for {', '.join(options.targets)} and this machine has "
            f"{gpu or 'no GPU'}; verified are the same graphs, computed in fp32 on the CPU"
        )
        return {}
    report.stage(f"Comparing the engine for {gpu} with the reference")
    rounding = COMPUTE_TOLERANCE[options.number_formats.compute]
    results = verify(
        _write_manifest(staging, manifest),
        [replace(case, name=f"{case.name}, engine for {gpu}") for case in reference.cases],
        reference.logits_tolerance + rounding,
        reference.embeds_tolerance + rounding,
    )
    return {gpu: results}


def _summary(results: Sequence[CaseResult]) -> dict[str, object]:
    return {
        "embeds_error": max(result.embeds_error for result in results),
        "logits_error": max(result.logits_error for result in results),
        "num_equal_tokens": sum(result.num_equal_tokens for result in results),
        "num_tokens": sum(result.num_tokens for result in results),
    }


def _write_manifest(repository: Path, manifest: Manifest) -> ModelFolder:
    folder = repository / manifest.name
    path = folder / VERSION_DIR / FILE_NAME
    path.write_text(manifest.to_json(), encoding="utf-8")
    return ModelFolder.open(folder, allow_unverified=True)


def _move_into_place(staging: Path, output: Path, name: str) -> None:
    for suffix in _STAGES:
        target, built = output / (name + suffix), staging / (name + suffix)
        if target.exists():
            target.rename(staging / (name + suffix + ".old"))
        if built.exists():  # a model that reads text only has no encoder
            built.rename(target)
