"""Networks for images, of every kind: costs, what configurations refuse, resume, bytes, export."""

import pytest
from torch.utils.flop_counter import FlopCounterMode

from ist_hpc.common.errors import InputError
from ist_hpc.config import loading
from ist_hpc.cost import counts
from ist_hpc.models.convolutional.resnet import ResNet
from ist_hpc.models.convolutional.vgg import VGG11
from ist_hpc.models.local_step import LocalStep
from tests.helpers.checkpoints import as_if_killed
from tests.helpers.image_runs import (
    CLASSES,
    KINDS,
    assert_bytes_are_those_planned,
    assert_equal_runs,
    batch,
    export_differs,
    thin_weights,
    train,
)
from tests.helpers.live_bytes import LiveBytes

BODIES = {"shared": {}, "dealt out": {"deal_channels": True}, "frozen": {"freeze_body": True}}


# Costs.


def small_vgg11(**options):
    return VGG11([40, 30], CLASSES, [8, 9, 10, 11, 12, 13, 14, 15], **options)


@pytest.mark.parametrize(
    ("model", "ranks"),
    [
        *(
            (ResNet([2, 1, 8, 2], [8, 9, 10, 11], CLASSES, least), ranks)
            for ranks, least in ((1, 1), (2, 1), (3, 4))
        ),
        *((small_vgg11(**options), ranks) for options in BODIES.values() for ranks in (1, 3)),
    ],
    ids=[
        *("resnet, 1 rank", "resnet, 2 ranks", "resnet, 3 ranks that share blocks"),
        *(f"vgg11, {name}, {ranks} rank(s)" for name in BODIES for ranks in (1, 3)),
    ],
)
def test_operations_are_those_that_torch_counts(model, ranks):
    with FlopCounterMode(display=False) as counter:
        model.loss_and_gradients(thin_weights(model, ranks), *batch(5), LocalStep())
    assert counts.step_flops(model.layers, 5, ranks) == counter.get_total_flops()


@pytest.mark.parametrize(
    ("model", "ranks"),
    [
        *((ResNet([2, 2, 12, 2], [16, 32, 64, 128], CLASSES), ranks) for ranks in (1, 4)),
        *((VGG11([256, 256], CLASSES, **options), 2) for options in BODIES.values()),
    ],
    ids=["resnet, 1 rank", "resnet, 4 ranks", *(f"vgg11, {name}" for name in BODIES)],
)
def test_activations_of_a_step_are_about_those_that_are_held(model, ranks):
    weights = thin_weights(model, ranks)
    with LiveBytes() as live:
        model.loss_and_gradients(weights, *batch(64), LocalStep())
    fixed = {spec.key for spec in model.shared if not spec.changes}
    gradient = sum(4 * weight.numel() for key, weight in weights.items() if key not in fixed)
    estimate = model.step_activations(64, ranks, None) + gradient
    assert 0.75 < live.most / estimate < 1.25


# The configuration.


REFUSED = {
    "resnet": [
        (
            ["model.kind=mlp", "model.hidden=[3]", "model.channels=[]"],
            "`model.sections` is of `model.kind: resnet`",
        ),
        (["model.hidden=[3]"], "not of resnet; leave it out, or write `hidden: []`, got [3]"),
        (["model.channels=[1,2,3]"], "those of 4 sections, or none, got [1, 2, 3]"),
        (["model.sections=[1,2,3]"], "the blocks of four sections, two or more of the third"),
        (["model.sections=[1,1,1,1]"], "two or more of the third, got [1, 1, 1, 1]"),
        (["model.min_blocks=6"], "at most the 5 blocks that are dealt out, got 6"),
        (["model.output_bias=false"], "or write `output_bias: true`"),
        (["model.output_norm=batch"], "or write `output_norm: none`"),
        (["model.loss=bce"], "or write `loss: auto`"),
        (["optimizer.kind=rowwise_adagrad", "optimizer.momentum=0"], "take adagrad, sgd or adam"),
        (["model.deal_channels=true"], "`model.deal_channels` is of `model.kind: vgg11`"),
    ],
    "vgg11": [
        (["model.kind=mlp"], "`model.channels` is of `model.kind: vgg11 or resnet`, not of mlp"),
        (["model.kind=mlp", "model.channels=[]", "model.deal_channels=true"], "deal_channels"),
        (["model.channels=[1,2,3]"], "8 convolutions, or none, got [1, 2, 3]"),
        (
            ["model.loss=bce", "model.output_norm=none"],
            "is of `model.kind: mlp`, not of vgg11",
        ),
        (["model.deal_channels=true", "model.body_from=a.h5"], "`model.body_from` is of conv"),
        (["model.deal_channels=true", "model.freeze_body=true"], "`model.freeze_body` is of conv"),
    ],
}


@pytest.mark.parametrize(
    ("kind", "settings", "said"), [(kind, *case) for kind in KINDS for case in REFUSED[kind]]
)
def test_keys_that_do_not_go_together(kind, settings, said):
    with pytest.raises(InputError) as error:
        loading.parse("", "nowhere", [*KINDS[kind], "train.rounds=1", *settings])
    assert said in str(error.value)


# Runs.


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def place(runs_of, kind):
    return runs_of(kind)


def test_a_resumed_run_equals_an_uninterrupted_one(place, kind):
    """With augmented images, averaged running statistics and momentum."""
    as_if_killed(place / "runs/whole", place / "runs/parts", 2)
    train(place, "parts", 4, *KINDS[kind], resume=True)
    assert_equal_runs(place, "whole", "parts", 4)


def test_bytes_are_those_of_the_plan(place, kind):
    """Those that settle shared blocks among them."""
    assert_bytes_are_those_planned(place, "whole", 4, *KINDS[kind])


@pytest.mark.parametrize("ranks", [1, 3])
def test_the_exported_module_gives_the_logits_of_evaluate(place, tmp_path, ranks):
    assert export_differs(place, place / "runs/whole", tmp_path, ranks) < 2e-5
