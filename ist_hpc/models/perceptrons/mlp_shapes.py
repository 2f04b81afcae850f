"""What is known of a perceptron before it has any weights: its tensors, and its bytes."""

from collections.abc import Sequence
from dataclasses import dataclass

from ist_hpc.common.sizes import ELEMENT_BYTES
from ist_hpc.exchange.placement import Axis, TensorSpec
from ist_hpc.models.layers import kept_numbers, matrices
from ist_hpc.models.perceptrons import many_labels, sampled_labels, sparse_input
from ist_hpc.models.perceptrons.sampled_labels import (
    Sampling,
)
from ist_hpc.models.shapes import Shapes, SharedSpec, StatisticSpec

LABELS = "labels"
"""The demand by which rows of the output weights are held where labels are sampled."""


@dataclass(frozen=True)
class PerceptronLayer:
    """The keys of a linear map and its norm or bias, None for what it does not have."""

    weight: str
    inputs: int
    outputs: int
    norm: str | None
    bias: str | None


class PerceptronShapes(Shapes):
    """The tensors of a perceptron of any depth and width, and the bytes that it needs.

    It has the arguments of the network:

    inputs, outputs  widths of the first input and of the output
    hidden           widths of the hidden layers; layer i is the axis `hidden{i}`
    output_norm      batch norm without scale and shift on the outputs, as the paper's authors did
    output_bias      a bias on the outputs, a shared parameter
    loss             as `model.loss` of the configuration, but for auto
    label_block      labels computed at a time, but by cross_entropy
    sampling         of the labels of sampled_softmax
    dropout          part of the hidden units that a step leaves out
    zero_outputs     whether the output weights begin at zero
    sparse           whether rows are sparse
    input_axis       the axis of the inputs, if these are units that are dealt out
    """

    def __init__(
        self,
        inputs: int,
        hidden: Sequence[int],
        outputs: int,
        output_norm: bool = True,
        output_bias: bool = False,
        loss: str = "cross_entropy",
        label_block: int = 2048,
        sparse: bool = False,
        input_axis: str | None = None,
        sampling: Sampling | None = None,
        dropout: float = 0.0,
        zero_outputs: bool = False,
    ) -> None:
        assert not (output_norm and output_bias), "batch norm would cancel the bias"
        assert loss == "cross_entropy" or not output_norm, "no batch norm over blocks of labels"
        assert (loss == "sampled_softmax") == (sampling is not None)
        assert not (sampling and output_bias), "its average would need every label"
        self.outputs = outputs
        self.label_block = label_block if loss != "cross_entropy" else None
        self.norms_outputs = output_norm
        self.differentiable = loss == "cross_entropy" and not sparse
        self._loss, self._sparse, self._sampling = loss, sparse, sampling
        self._dropout, self._zero_outputs = dropout, zero_outputs
        self.axes = {f"hidden{i}": Axis(size) for i, size in enumerate(hidden, start=1)}
        specs: list[TensorSpec] = []
        layers: list[PerceptronLayer] = []
        width, axis = inputs, input_axis
        for i, size in enumerate(hidden, start=1):
            own = f"hidden{i}"
            specs += [
                TensorSpec(f"fc{i}.weight", (size, width), (own, axis), sparse and i == 1),
                TensorSpec(f"bn{i}.weight", (size,), (own,)),
                TensorSpec(f"bn{i}.bias", (size,), (own,)),
            ]
            layers.append(PerceptronLayer(f"fc{i}.weight", width, size, f"bn{i}", None))
            width, axis = size, own
        demanded = None if sampling is None else LABELS
        specs.append(
            TensorSpec(
                *("out.weight", (outputs, width), (None, axis)),
                transposed=sampling is None,
                demanded=demanded,
            )
        )
        bias = "out.bias" if output_bias else None
        norm = "bn_out" if output_norm else None
        layers.append(PerceptronLayer("out.weight", width, outputs, norm, bias))
        self.specs = tuple(specs)
        self.shared = (SharedSpec("out.bias", (outputs,)),) if output_bias else ()
        self.statistics = tuple(
            StatisticSpec(layer.norm, layer.outputs) for layer in layers if layer.norm
        )
        self._layers = tuple(layers)

    # Bytes, before any are allocated.

    @property
    def dense_specs(self) -> tuple[TensorSpec, ...]:
        """All but the first matrix, if rows are sparse, and the last, if labels are sampled."""
        return tuple(spec for spec in self.specs if spec.key not in self.row_gradient_keys)

    @property
    def row_gradient_keys(self) -> tuple[str, ...]:
        """Of sparse features, and of sampled labels; see the base class."""
        features = (self._layers[0].weight,) if self._sparse else ()
        return features if self._sampling is None else (*features, self._layers[-1].weight)

    def row_gradients(
        self, rows: int, ranks: int, entries: float | None
    ) -> list[tuple[TensorSpec, int]]:
        """Of the first matrix what occurs in sparse rows, of the last the labels of a step."""
        first, last = self.layers[0], self.layers[-1]
        found = []
        if entries is not None:
            features = sparse_input.occurring(rows, entries, first.inputs)
            found.append((self.specs[0], features * first.own_outputs(ranks)))
        if self._sampling is not None:
            labels = round(self.step_outputs(rows))
            found.append((self.specs[-1], labels * last.own_inputs(ranks)))
        return found

    def expected_demands(self, rows: int, steps: int) -> dict[str, tuple[int, float]]:
        """Of labels that are sampled; see the base class."""
        if self._sampling is None:
            return {}
        return {LABELS: (self.outputs, self._sampling.expected_labels(rows, steps))}

    def updated_part(self, spec: TensorSpec, rows: int, steps: int, entries: float | None) -> float:
        """Of the first and last matrix the rows that steps use; see the base class."""
        if self._sampling is None or spec.key not in self.row_gradient_keys:
            return 1.0
        if spec.demanded is not None:
            return self._sampling.expected_labels(rows, steps) / self.outputs
        assert entries is not None
        return sparse_input.occurring(rows * steps, entries, spec.columns) / spec.columns

    def step_outputs(self, rows: int) -> float:
        """All, or the labels of a step; see the base class."""
        sampling = self._sampling
        return self.outputs if sampling is None else sampling.expected_labels(rows, 1)

    def _cast_specs(self) -> list[TensorSpec]:
        """With labels in blocks only one block is copied at a time."""
        matrices_alone = matrices(self.dense_specs)
        in_blocks = self.label_block is not None and self._sampling is None
        return matrices_alone[:-1] if in_blocks else matrices_alone

    def _entering_numbers(self, entries: float | None, share: float) -> float:
        if entries is None:
            return super()._entering_numbers(entries, share)
        return sparse_input.STEP_NUMBERS * entries

    def _trained_numbers(self, ranks: int, share: float) -> float:
        if self.label_block is None:
            return super()._trained_numbers(ranks, share)
        hidden = share * kept_numbers(self.layers[:-1], ranks)
        if self._sampling is not None:
            return hidden
        return hidden + many_labels.step_numbers(self.outputs, self.label_block)

    def step_activations(
        self, rows: int, ranks: int, entries: float | None, product_bytes: int = ELEMENT_BYTES
    ) -> int:
        """With the labels of a step, if they are sampled; see the base class."""
        held = super().step_activations(rows, ranks, entries, product_bytes)
        if self._sampling is None:
            return held
        units = self.layers[-1].own_inputs(ranks)
        numbers = sampled_labels.step_numbers(self.step_outputs(rows), rows, units)
        return held + round(numbers * ELEMENT_BYTES)

    def _full_layer_bytes(
        self, index: int, rows: int, ranks: int, entries: float | None, calibrate: bool
    ) -> int:
        if entries is None:
            return super()._full_layer_bytes(index, rows, ranks, entries, calibrate)
        layer = self.layers[index]
        own = layer.home_outputs(ranks)
        if index == len(self.layers) - 1:  # for sets of labels only the best logits are kept
            assert self.label_block is not None
            return 0 if calibrate else many_labels.ranked_bytes(rows, own, self.label_block)
        held = layer.full_bytes(rows, ranks)
        if index == 0:
            held += sparse_input.home_bytes(rows, entries, (own, layer.inputs))
        return held
