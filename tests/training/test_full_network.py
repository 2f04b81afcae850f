"""What an evaluation gathers takes the memory that the layers say."""

import pytest
import torch

from ist_hpc.models import layers
from ist_hpc.models.layers import Layer
from ist_hpc.runtime.devices import CPU
from ist_hpc.training.evaluation import full_network
from tests.helpers.alone import Alone
from tests.helpers.live_bytes import LiveBytes


@pytest.mark.parametrize("at_once", [1 << 14, 8 << 20])
@pytest.mark.parametrize("positions", [1, 16])
@pytest.mark.parametrize("ranks", [2, 3])
def test_gathered_activations_take_the_memory_that_is_said(monkeypatch, at_once, positions, ranks):
    for module in (layers, full_network):
        monkeypatch.setattr(module, "GATHER_BYTES", at_once)
    layer = Layer(90, 40, True, True, positions=positions, positions_in=positions)
    rows, planes = 500, (positions,) if positions > 1 else ()
    peers = full_network._Peers(Alone(0, ranks), CPU)
    with LiveBytes() as live:
        peers.gather(torch.zeros(rows, 90 // ranks, *planes), 90)
    assert 0.9 < live.most / layer.full_bytes(rows, ranks) <= 1.0
