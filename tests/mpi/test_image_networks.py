"""The oracle on networks for images: convolutions shared and dealt out, blocks shared or not."""

import numpy as np
import pytest

from tests.helpers.oracle import Oracle
from tests.mpi.against_oracle import RULES, SEED, assert_equal, follow_averages, rounds
from tests.mpi.helpers import build, full
from tests.mpi.image_networks import BODIES, images, resnet, vgg11

CASES = {
    **{f"vgg11, {b}, {r}": (vgg11(**BODIES[b]), r) for b in BODIES for r in RULES},
    **{f"resnet, some blocks shared, {r}": (resnet(least=3), r) for r in RULES},
    "resnet, each block once": (resnet(least=1), "momentum, carried"),
    "resnet, all blocks shared": (resnet(least=5), "momentum, carried"),
}


@pytest.mark.parametrize(("model", "rule"), CASES.values(), ids=CASES.keys())
def test_ranks_equal_one_process_that_trains_the_subnets_in_turn(world, averages, model, rule):
    config = RULES[rule]
    algorithm = build(world, model, config, SEED, averages=averages)
    oracle = Oracle(model, world.Get_size(), SEED, config)
    specs = (*model.specs, *algorithm.slot_specs)
    for index in rounds(world, algorithm, oracle, config.lr, 4, images):
        follow_averages(algorithm, oracle)
        for name, axis in model.axes.items():
            own = len(algorithm.placement.deals[name].units(world.rank))
            for spec in model.specs:
                if spec.row_axis == name:
                    held = algorithm.state[spec.key].place("subnet")
                    assert len(held) == max(axis.least, own)
        if index in (1, 3):  # visits home in between must not matter
            whole = full(world, algorithm, specs)
    assert_equal(whole, oracle, algorithm)
    assert all(len(whole[spec.key]) == spec.shape[0] for spec in specs)
    start = {spec.key: model.initial_shared(spec, SEED) for spec in model.shared}
    unchanged = [k for k, v in algorithm.shared.items() if np.array_equal(v.numpy(), start[k])]
    assert not unchanged
    shared = world.allgather([tensor.numpy().tobytes() for tensor in algorithm.shared.values()])
    assert all(len(set(of_ranks)) == 1 for of_ranks in zip(*shared, strict=True))
