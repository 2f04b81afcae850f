"""A residual network in plain PyTorch, for evaluation: what `show --export` prints."""

SOURCE = """\
import torch
import torch.nn.functional as F
from torch import nn

SHAPES = {{
{shapes}}}


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        for name, shape in SHAPES.items():
            self.register_buffer(name, torch.zeros(shape))

    def norm(self, name, values, at):
        parts = ("running_mean", "running_var", "weight", "bias")
        of_norm = [getattr(self, f"{{name}}_{{part}}")[at] for part in parts]
        return F.relu(F.batch_norm(values, *of_norm, eps={epsilon}))

    def block(self, name, values, stride=1, at=..., scale=1.0):
        conv1, conv2 = (getattr(self, f"{{name}}_conv{{i}}_weight")[at] for i in (1, 2))
        shortcut = getattr(self, f"{{name}}_shortcut_weight", None)
        entering = self.norm(f"{{name}}_norm1", values, at)
        branch = F.conv2d(entering, conv1, stride=stride, padding=1)
        branch = F.conv2d(self.norm(f"{{name}}_norm2", branch, at), conv2, padding=1)
        if shortcut is not None:
            values = F.conv2d(entering, shortcut, stride=stride)
        return values + scale * branch

    def forward(self, rows):
        values = F.conv2d(rows.view(-1, *{image}), self.stem_weight, padding=1)
        for name, stride in {before}:
            values = self.block(name, values, stride)
        for at in range({dealt}):
            values = self.block("blocks", values, at=at, scale={scale})
        for name, stride in {after}:
            values = self.block(name, values, stride)
        values = self.norm("norm", values, ...).mean(dim=(2, 3))
        return F.linear(values, self.out_weight, self.out_bias)


model = ResNet()"""
