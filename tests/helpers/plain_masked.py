"""AdamW in plain PyTorch, one process, whole batches, with masks: every entry has a rate and a count of steps of its
own."""

import torch
from torch import Tensor, nn

from pipeline.training.losses import loss_per_sample


class MaskedAdamW:
    """parameters: name -> (parameter, weight decay). moments: name -> (first, second). steps: name -> how many steps
    each entry has seen so far, in the parameter's shape."""

    def __init__(
        self,
        parameters: dict[str, tuple[nn.Parameter, float]],
        moments: dict[str, tuple[Tensor, Tensor]],
        steps: dict[str, Tensor],
        betas: tuple[float, float],
        eps: float,
    ):
        self.parameters, self.moments, self.betas, self.eps = parameters, moments, betas, eps
        self.steps = {name: count.double() for name, count in steps.items()}

    @torch.no_grad()
    def step(self, rates: dict[str, Tensor], counted: int) -> None:
        """rates: the rate of every entry. counted: steps of the oldest entries with this one, in which eps is, as
        docs/optimizers.md says."""
        first, second = self.betas
        for name, (parameter, decay) in self.parameters.items():
            m, v = self.moments[name]
            self.steps[name] += 1
            k, rate = self.steps[name], rates[name].double()
            m.mul_(first).add_(parameter.grad, alpha=1 - first)
            v.mul_(second).addcmul_(parameter.grad, parameter.grad, value=1 - second)
            eps = self.eps * ((1 - second**counted) / (1 - second**k)).sqrt()
            update = (m / (1 - first**k)) / ((v / (1 - second**k)).sqrt() + eps)
            parameter.mul_(1 - rate * decay).sub_(rate * update)


def gradients(net: nn.Module, batch, clip: float) -> float:
    """Those of a whole batch, clipped; returns the loss."""
    net.zero_grad()
    loss = loss_per_sample(net(**batch.inputs).logits, batch.labels).mean()
    loss.backward()
    nn.utils.clip_grad_norm_(net.parameters(), clip)
    return loss.item()
