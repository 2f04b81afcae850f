"""Gradients of a model's loss by PyTorch's autograd."""

import torch
from torch import Tensor

from ist_hpc.models.base import Gradients, Model, Tensors
from ist_hpc.sparse import Rows


def loss_and_gradients(
    model: Model, weights: Tensors, features: Rows, labels: Rows
) -> tuple[Tensor, Gradients]:
    """As `Model.loss_and_gradients`, for a differentiable model of dense rows, one class each."""
    assert isinstance(features, Tensor), "rows are dense"
    assert isinstance(labels, Tensor), "one class a row"
    fixed = {spec.key for spec in model.shared if not spec.trained}
    leaves = {
        key: weight.detach().requires_grad_(True)
        for key, weight in weights.items()
        if key not in fixed
    }
    loss = model.loss({**weights, **leaves}, features, labels)
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return loss.detach(), dict(zip(leaves, gradients, strict=True))
