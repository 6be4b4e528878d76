"""The preprocess stage; see `python_backend.stages.preprocess`."""

from python_backend.stages.preprocess import PreprocessModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
