"""A model that is built part by part is the one that is built whole: parameters, buffers, ties, to the bit."""

import pytest
import torch
from torch import nn

from pipeline import models
from pipeline.models import parts
from tests.helpers.samples import VARIANTS, sample


class Shelf:
    """Takes every parameter of a module once, and leaves it empty."""

    def __init__(self) -> None:
        self.taken: dict[int, torch.Tensor] = {}
        self.most = 0
        """Numbers that were whole at one time."""

    def place(self, module: nn.Module) -> None:
        whole = [parameter for parameter in module.parameters() if id(parameter) not in self.taken]
        for parameter in whole:
            self.taken[id(parameter)] = parameter.data
            parameter.data = parameter.data.new_empty(0)
        self.most = max(self.most, sum(self.taken[id(parameter)].numel() for parameter in whole))


def require_same(built: nn.Module, shelf: Shelf, whole: nn.Module) -> None:
    named, expected = (dict(model.named_parameters(remove_duplicate=False)) for model in (built, whole))
    assert list(named) == list(expected)
    for name, parameter in named.items():
        assert torch.equal(shelf.taken[id(parameter)], expected[name]), name
        assert parameter.requires_grad == expected[name].requires_grad
    assert [name for name, _ in built.named_parameters()] == [name for name, _ in whole.named_parameters()]
    buffers, of_whole = dict(built.named_buffers()), dict(whole.named_buffers())
    assert list(buffers) == list(of_whole) and all(torch.equal(buffers[name], of_whole[name]) for name in buffers)
    assert built.state_dict().keys() == whole.state_dict().keys()


@pytest.mark.parametrize("variant", VARIANTS)
def test_fresh_weights_are_those_of_a_whole_build(variant):
    described, shelf = sample(variant), Shelf()
    require_same(parts.initialized(described, 7, shelf.place), shelf, models.build(described, 7))


@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_that_are_read_are_those_of_a_whole_model(variant):
    described, shelf = sample(variant), Shelf()
    whole = models.build(described, 7)
    held = dict(whole.named_parameters())
    names = {row.name: row.module_name for row in models.architecture_of(described).rows()}
    require_same(parts.filled(described, lambda name: held[names[name]], shelf.place), shelf, whole)
