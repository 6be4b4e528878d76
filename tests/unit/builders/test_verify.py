"""Verification finds a graph that is wrong."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from builders.families import family_graphs
from builders.hf_reference import huggingface_cases
from builders.precision import Precision
from builders.verify import FP32_TOLERANCE, relative_error, verify
from python_backend.errors import ParityError
from python_backend.manifest import ModelFolder
from python_backend.preprocess import Preprocessor


@pytest.fixture(scope="module")
def cases(tied):
    graphs = family_graphs(tied.shape.model_type)(tied.model.manifest.config)
    precision = Precision.for_cpu("fp32")
    return huggingface_cases(tied.checkpoint, graphs, Preprocessor(tied.model), precision, {})


@pytest.fixture
def copy(tied, tmp_path):
    """The built model, to damage."""
    shutil.copytree(tied.repository, tmp_path / "repository")
    return ModelFolder.open(tmp_path / "repository" / tied.model.manifest.name)


def _change_weights(path, first: int, last: int) -> None:
    """Negate a share of the weights, from `first` to `last` percent of the file."""
    weights = np.memmap(path, np.float32, mode="r+")
    begin, end = len(weights) * first // 100, len(weights) * last // 100
    weights[begin:end] *= -1
    weights.flush()


def test_untouched_model_is_within_tolerance(tied, cases):
    results = verify(tied.model, cases, FP32_TOLERANCE)
    assert [result.name for result in results] == [case.name for case in cases]
    assert max(result.logits_error for result in results) < 1e-5
    assert max(result.embeds_error for result in results) < 1e-5
    assert all(result.num_equal_tokens == result.num_tokens for result in results)


def test_wrong_decoder_weight_fails_every_case_by_name(copy, cases):
    _change_weights(copy.path(copy.manifest.decoder).with_suffix(".onnx.data"), 60, 65)
    with pytest.raises(ParityError) as error:
        verify(copy, cases, FP32_TOLERANCE)
    assert all(f"{case.name}: logits are off" in error.value.message for case in cases)


def test_wrong_vision_weight_fails_the_cases_with_images_only(copy, cases):
    _change_weights(copy.path(copy.manifest.vision_encoder).with_suffix(".onnx.data"), 60, 65)
    with pytest.raises(ParityError) as error:
        verify(copy, cases, FP32_TOLERANCE)
    for case in cases:
        found = f"{case.name}: image embeddings are off" in error.value.message
        assert found == bool(case.images)


def test_wrong_processor_fails_as_another_prompt(copy, cases):
    path = copy.processor_dir / "preprocessor_config.json"
    path.write_text(path.read_text().replace('"max_pixels": 50176', '"max_pixels": 6272'))
    with pytest.raises(ParityError, match="token ids differ"):
        verify(copy, cases, FP32_TOLERANCE)


def test_relative_error_of_other_shapes_is_infinite():
    assert relative_error(np.ones((2, 3)), np.ones((3, 2))) == float("inf")
    assert relative_error(np.full(4, 1.1), np.ones(4)) == pytest.approx(0.1)
