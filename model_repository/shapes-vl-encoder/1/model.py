"""The encoder stage; see `python_backend.stages.encoder`."""

from python_backend.stages.encoder import EncoderModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
