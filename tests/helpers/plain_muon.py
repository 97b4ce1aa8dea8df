"""Muon and AdamW in plain PyTorch, one process, whole batches, as the paper of Muon has it."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

COEFFICIENTS = 3.4445, -4.7750, 2.0315


def orthogonalised(matrix: Tensor) -> Tensor:
    """Five steps of the quintic Newton-Schulz iteration, on the whole matrix, in the matrix's own precision."""
    a, b, c = COEFFICIENTS
    rows, columns = matrix.shape
    x = matrix.T if rows > columns else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if rows > columns else x) * max(1.0, rows / columns) ** 0.5


class PlainMuon:
    """Nesterov's momentum of each matrix, orthogonalised; AdamW for `others`, groups of torch's."""

    def __init__(self, matrices: Iterable[nn.Parameter], others: list[dict], rate: float, decay: float, beta: float):
        self.momentum = {matrix: torch.zeros_like(matrix) for matrix in matrices}
        self.adam, self.rate, self.decay, self.beta = torch.optim.AdamW(others), rate, decay, beta

    def zero_grad(self) -> None:
        self.adam.zero_grad()
        for matrix in self.momentum:
            matrix.grad = None

    @torch.no_grad()
    def step(self) -> None:
        for matrix, momentum in self.momentum.items():
            momentum.mul_(self.beta).add_(matrix.grad, alpha=1 - self.beta)
            ahead = self.beta * momentum + (1 - self.beta) * matrix.grad
            matrix.mul_(1 - self.rate * self.decay)
            matrix.add_(orthogonalised(ahead), alpha=-self.rate)
        self.adam.step()
