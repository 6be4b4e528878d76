"""TensorRT-RTX's name for the fake on real CUDA kernels, in programs that a test starts."""

import sys

from fake_tensorrt import FakeTensorRt
from toy_kernels import ToyKernels

sys.modules[__name__] = FakeTensorRt(ToyKernels())
