"""The Triton models in `model_repository/` are what the builder writes for the default model."""

from pathlib import Path

from builders.options import BuildOptions
from builders.pipeline import build
from tests.conftest import SilentReport

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "model_repository"
CHECKPOINT = ROOT / "default_model" / "shapes-vl"
STAGES = ("", "-preprocess", "-encoder", "-decoder")


def test_committed_models_equal_the_builders_output(tmp_path: Path) -> None:
    build(BuildOptions(model=str(CHECKPOINT), output=tmp_path), SilentReport())
    for suffix in STAGES:
        model = CHECKPOINT.name + suffix
        names = ["config.pbtxt"] + (["1/model.py"] if suffix else [])
        for name in names:
            built = (tmp_path / model / name).read_text(encoding="utf-8")
            assert (COMMITTED / model / name).read_text(encoding="utf-8") == built, (model, name)
