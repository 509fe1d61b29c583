"""Where did my accuracy go: two networks beside each other, layer by layer and step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, fx

from spikezip.errors import StageError
from spikezip.graph import network
from spikezip.graph.modes import default_device
from spikezip.graph.network import Stage
from spikezip.measure.saving import finite, save_json
from spikezip.measure.side_by_side import Tally, longest, read_network, read_snn, tap
from spikezip.percent import percent
from spikezip.run import Engine
from spikezip.run.engine import check_inputs
from spikezip.run.step import pieces
from spikezip.spike.encoding import Pulse
from spikezip.spike.swap import SpikingNetwork

_Network = fx.GraphModule | SpikingNetwork


@dataclass(frozen=True)
class LayerDifference:
    """How far one layer of network b is from that of network a, at each step (one, for networks without time).

    Attributes:
        name: of the quantizer or neuron layer.
        neurons: per image.
        l1: mean ``|b - a|`` per neuron, ``[T]``.
        size: mean ``|a|`` per neuron, to see ``l1`` against, ``[T]``.
        maximum: greatest ``|b - a|``, ``[T]``.
        differ: share of neurons whose codes differ, ``[T]``; the code of an ANN's value, and of one with other levels,
            is taken under b's quantizer.
        levels: greatest difference of codes, ``[T]``.
        correlation: of a's values with b's (Pearson), ``[T]``; None where either is constant.
    """

    name: str
    neurons: int
    l1: tuple[float, ...]
    size: tuple[float, ...]
    maximum: tuple[float, ...]
    differ: tuple[float, ...]
    levels: tuple[int, ...]
    correlation: tuple[float | None, ...]

    @property
    def equal_from(self) -> int | None:
        """First step from which no code differs; None if some do at the last."""
        if self.differ[-1] > 0:
            return None
        return 1 + max((t for t, share in enumerate(self.differ, start=1) if share > 0), default=0)

    @property
    def relative(self) -> float:
        """``l1 / size`` at the last step: 0.05 is an error of 5 % of the layer's activity."""
        return self.l1[-1] / self.size[-1] if self.size[-1] else float("inf") if self.l1[-1] else 0.0


@dataclass(frozen=True)
class OutputDifference:
    """How far outputs are apart, ``[T]`` each; ``agree`` is the share of images with the same greatest entry; of
    one value an image, with the very same."""

    l1: tuple[float, ...]
    maximum: tuple[float, ...]
    agree: tuple[float, ...]


@dataclass(frozen=True)
class Comparison:
    """Two networks on the same images; see :func:`compare`.

    Attributes:
        kind: ``ANN–QANN``, ``QANN–SNN``, ...
        images: how many.
        layers: matched by name, in order of execution.
        outputs: one each.
        unmatched: layers that only one of the networks has.
    """

    kind: str
    images: int
    layers: tuple[LayerDifference, ...]
    outputs: tuple[OutputDifference, ...]
    unmatched: tuple[str, ...]

    @property
    def steps(self) -> int:
        """How many steps were compared; 1 for networks without time."""
        return len(self.outputs[0].l1)

    def worst(self) -> LayerDifference | None:
        """The layer with most differing codes at the last step (of equals, the greatest relative error)."""
        return max(self.layers, key=lambda layer: (layer.differ[-1], layer.relative), default=None)

    def first_bad(self, threshold: float = 0.0) -> LayerDifference | None:
        """The first layer, in order of execution, with a share above ``threshold`` of differing codes at the last step.

        What lies behind it inherits its error: start looking here.
        """
        return next((layer for layer in self.layers if layer.differ[-1] > threshold), None)

    def to_json(self) -> dict[str, Any]:
        """As plain data; None for what is NaN or infinite, such as an output before spikes have reached a logarithm."""
        content = asdict(self)
        for row in (*content["layers"], *content["outputs"]):
            row.update({key: finite(value) for key, value in row.items() if isinstance(value, tuple)})
        return {"format": "spikezip.comparison/1", **content}

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write it as JSON in one step; OutputError if it exists and not ``overwrite``, or cannot be written."""
        return save_json(path, self.to_json(), indent=1, overwrite=overwrite)

    def __str__(self) -> str:
        return _table(self)

    __repr__ = __str__  # a notebook shows it so


@default_device()
def compare(
    a: _Network,
    b: _Network,
    images: Tensor | Sequence[Tensor],
    *,
    steps: int | None = None,
    engines: tuple[Engine, Engine] = (Engine.REFERENCE, Engine.REFERENCE),
    batch: int = 16,
) -> Comparison:
    """Compare two networks on the same images: every neuron layer at every step, and the outputs.

    Layers are matched by name. An ANN has no quantizers: its value at the place where b's quantizer sits is taken, so
    pass the very (morphed) network that was quantized. Values are those of the trained network: the codes of an integer
    network are multiplied by the thresholds that were divided out of it.

    Args:
        a: what should be: an ANN, a QANN or an SNN.
        b: what is: a QANN or an SNN.
        images: inputs ``[N, ...]``, or several.
        steps: time steps, if one of them is an SNN; None: until every image has settled.
        engines: of a and of b, where they are SNNs.
        batch: images run together.

    Returns:
        The :class:`Comparison`; ``print`` it.

    Raises:
        InputError: the images do not fit the networks.
        StageError: the networks share no layer, or take different inputs.

    >>> import torch
    >>> from spikezip import capture, morph, quantize
    >>> images = torch.rand(32, 4)
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    >>> ann = morph(capture(model, images[:1]))
    >>> comparison = compare(ann, quantize(ann, 8, images), images)
    >>> comparison.kind, [layer.name for layer in comparison.layers], comparison.first_bad(threshold=0.01)
    ('ANN–QANN', ['1'], None)
    """
    pair = a, b
    graphs = tuple(n.graph if isinstance(n, SpikingNetwork) else n for n in pair)
    stages = tuple(network.info(g).stage for g in graphs)
    if stages == (Stage.ANN, Stage.ANN):
        raise StageError("Two ANNs hold no codes to compare. Pass a QANN or an SNN as one of the two.")
    if network.info(graphs[0]).inputs != network.info(graphs[1]).inputs:
        raise StageError("The two networks take different inputs, so they cannot be compared.")
    inputs = check_inputs(SpikingNetwork(graphs[0], Pulse(), Pulse()), images)
    length = steps if steps is not None else longest(pair, inputs, engines, batch)
    strict = all(network.note(g, "strict", True) for g in graphs)
    places = [tap(g, strict) if stage is Stage.ANN else g for g, stage in zip(graphs, stages, strict=True)]
    tally, names = Tally(), [set(), set()]
    for _, piece in pieces(inputs, batch):
        read = [
            read_snn(n, piece, length, engine) if isinstance(n, SpikingNetwork) else read_network(g, piece)
            for n, g, engine in zip(pair, places, engines, strict=True)
        ]
        names = [set(r.layers) for r in read]
        if not names[0] & names[1]:
            raise StageError(
                "The two networks share no layer: none of their quantizers or neurons have the same name. Compare a "
                "network with what was made from it."
            )
        tally.add(*read)
    return Comparison(
        kind="–".join(stage.value for stage in stages),
        images=inputs[0].shape[0],
        layers=tuple(LayerDifference(**row) for row in tally.layer_rows()),
        outputs=tuple(OutputDifference(**row) for row in tally.output_rows()),
        unmatched=tuple(sorted(names[0] ^ names[1])),
    )


def _table(c: Comparison) -> str:
    """Plain text, one row a layer, at the last step; the first layer with differing codes is marked."""
    first = c.first_bad()
    head = ["layer", "neurons", "codes differ", "levels", "L1", "relative", "maximum", "correlation"]
    head += ["equal from t"] if c.steps > 1 else []
    rows = [head]
    for layer in c.layers:
        r = layer.correlation[-1]
        row = [
            f"{layer.name} <" if layer is first else layer.name,
            str(layer.neurons),
            f"{100 * layer.differ[-1]:.3g} %",
            str(layer.levels[-1]),
            f"{layer.l1[-1]:.3g}",
            f"{100 * layer.relative:.3g} %",
            f"{layer.maximum[-1]:.3g}",
            "-" if r is None else f"{r:.4f}",
        ]
        rows.append(row + ([str(layer.equal_from or "-")] if c.steps > 1 else []))
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = [
        "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))).rstrip()
        for row in rows
    ]
    title = f"{c.kind}, {c.images} images" + (f", after {c.steps} steps" if c.steps > 1 else "")
    lines = [title, *lines]
    for i, output in enumerate(c.outputs):
        lines.append(
            f"output {i}: L1 {output.l1[-1]:.3g}, maximum {output.maximum[-1]:.3g}, "
            f"same answer for {percent(output.agree[-1])} of the images"
        )
    if first is not None:
        lines.append(f"< the first layer that differs: {first.name!r}; what lies behind it inherits its error")
    if c.unmatched:
        lines.append(f"in one network only: {', '.join(c.unmatched)}")
    return "\n".join(lines)
