"""Muon: momentum whose update of a matrix is made orthogonal, with AdamW for everything else.

Source: Keller Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024); the
scale of the update after "Muon is Scalable for LLM Training" (arXiv 2502.16982). The one in PyTorch
computes in bfloat16, which is slow on a CPU, and one matrix at a time.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

MOMENTUM, NUM_ITERATIONS = 0.95, 4
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
UPDATE_SCALE = 0.3  # root mean square of an update, about that of AdamW


def orthogonalize(matrices: Tensor) -> Tensor:
    """Bring all singular values near 1, by a Newton-Schulz iteration.

    Args:
        matrices: float32 [N, rows, columns], with rows <= columns.
    """
    a, b, c = COEFFICIENTS
    matrices = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(NUM_ITERATIONS):
        gram = matrices @ matrices.mT
        matrices = a * matrices + (b * gram + c * gram @ gram) @ matrices
    return matrices


class Muon(torch.optim.Optimizer):
    """Muon for the matrices it is given."""

    def __init__(self, matrices: Iterable[nn.Parameter], lr: float, weight_decay: float) -> None:
        """Set the peak rate; the training loop changes `lr` in `param_groups`."""
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update the matrices, all of one shape at once."""
        for group in self.param_groups:
            shapes = collections.defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    shapes[matrix.shape].append(matrix)
            for (rows, columns), matrices in shapes.items():
                updates = []
                for matrix in matrices:
                    momentum = self.state[matrix].setdefault("momentum", torch.zeros_like(matrix))
                    momentum.lerp_(matrix.grad, 1 - MOMENTUM)
                    update = matrix.grad.lerp(momentum, MOMENTUM)
                    updates.append(update if rows <= columns else update.T)
                scale = UPDATE_SCALE * math.sqrt(max(rows, columns))
                for matrix, update in zip(
                    matrices, orthogonalize(torch.stack(updates)), strict=True
                ):
                    update = update if rows <= columns else update.T
                    matrix.mul_(1 - group["lr"] * group["weight_decay"])
                    matrix.add_(update, alpha=-group["lr"] * scale)
