"""TensorRT-RTX's name for the fake on real CUDA streams, in programs that a test starts."""

import sys

from cuda_streams import CudaStreams
from fake_tensorrt import FakeTensorRt

sys.modules[__name__] = FakeTensorRt(CudaStreams())
