"""The learning rate's steps. The update rules are checked, to the last bit, by tests/mpi."""

import pytest

from ist_hpc.config import OptimizerConfig
from ist_hpc.optimizer import build, learning_rate
from ist_hpc.placement import TensorSpec


@pytest.mark.parametrize(
    ("epoch", "expected"), [(0, 0.8), (1.99, 0.8), (2, 0.2), (2.5, 0.2), (3, 0.05), (90, 0.05)]
)
def test_the_learning_rate_steps_down_at_the_named_epochs(epoch, expected):
    config = OptimizerConfig(lr=0.8, decay_epochs=[2.0, 3.0], decay_factor=0.25)
    assert learning_rate(config, epoch) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("config", "first_layer", "middle_layer"),
    [
        (OptimizerConfig(), [], []),
        (OptimizerConfig(momentum=0.5), ["momentum/w"], ["momentum/w"]),
        (
            OptimizerConfig(kind="adam"),
            ["exp_avg/w", "exp_avg_sq/w"],
            ["exp_avg/w", "exp_avg_sq/w", "updates/w"],
        ),
    ],
    ids=["sgd", "momentum", "adam"],
)
def test_slots_are_tensors_like_their_weight(config, first_layer, middle_layer):
    rule = build(config)
    for axes, expected in ((("a", None), first_layer), (("b", "a"), middle_layer)):
        slots = rule.slot_specs([TensorSpec("w", (6, 4), axes)])
        assert [slot.key for slot in slots] == expected
        assert all((slot.shape, slot.axes) == ((6, 4), axes) for slot in slots)
