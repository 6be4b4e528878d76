"""The decoder stage; see `python_backend.stages.decoder`."""

from python_backend.stages.decoder import DecoderModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
