"""The whole road on one screen."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from spikezip.errors import InputError, StageError
from spikezip.graph import capture, network
from spikezip.graph.modes import building, default_device
from spikezip.levels import Levels
from spikezip.measure import Certificate, Record, default_engine, mean_codes, measure, verify
from spikezip.morph import Morph, morph
from spikezip.quantize import quantize, to_integer
from spikezip.quantize.calibrate import LIMIT, gather
from spikezip.quantize.exact import output_rounding
from spikezip.run import EarlyExit, Engine, Run, State, Stream, execute, stream
from spikezip.spike import Encoding, Pulse, SpikingNetwork
from spikezip.spike import spike as _spike

if TYPE_CHECKING:
    import nir

__all__ = ["SNN", "capture", "convert", "load", "measure", "morph", "quantize", "report", "spike", "verify"]

_FAR = 0.5  #: of the spread of the answers; 8-bit weights change it by 0.01 to 0.1 in most networks
_FARTHEST = 1.0  #: of it, that few levels change without a word
_ENOUGH, _FEW = 16, 64  #: images, and answers of each, for which every answer is looked at by itself


@building()
def convert(
    model: nn.Module,
    example: Tensor | Sequence[Tensor],
    calibration: Tensor | Iterable[Any],
    *,
    levels: int | Levels = 8,
    signed_levels: int | Levels | None = None,
    layer_levels: Mapping[str, int | Levels] | None = None,
    weight_bits: int | None = 8,
    morph: Morph = Morph(),
    encoding: Encoding = Pulse(),
    bias_encoding: Encoding | None = None,
    slew: int = 1,
    initial_code: int | Literal["mean"] = 0,
    refit: bool | None = None,
    fit_steps: Sequence[float] | None = None,
    on_stage: Callable[[str, nn.Module], Any] | None = None,
) -> SNN:
    """Convert a trained network into an SNN without training.

    Args:
        model: any ``nn.Module`` that ``torch.export`` captures; it is left untouched.
        example: one input ``[B, ...]``, or several.
        calibration: a few hundred typical inputs, ``[N, ...]`` (several of them, if ``example`` is), or batches.
        levels: of every neuron; ``8`` is 0..7 (-4..3 where values may be negative).
        signed_levels: where values may be negative, if they are to differ.
        layer_levels: of single layers, by the name of their neurons (``dict(snn.layers)`` of a first conversion).
        weight_bits: integer weights, so that equality holds to the bit in every engine; None keeps floats.
        morph: pooling, activations and residual wiring.
        encoding: how the input is released over time.
        bias_encoding: how biases are; as the input if not given.
        slew: levels a neuron may move per step.
        initial_code: where tracers start, in layers without negative codes; ``"mean"``: each of any layer at its mean
            code on the calibration data, so that fewer spikes are needed.
        refit: fit each layer's weights, on quantized inputs, to what the layer gives in the model on the calibration
            data, without labels, so that they make up for quantizing and for a ``morph`` that changes the function;
            None does so if the outputs are then nearer to the model's there. Unless it is False, weights are rounded
            to ``weight_bits`` so that they make up for one another.
        fit_steps: how much the answer at each of the first steps counts, if weights are to be fitted for those and not
            for the settled answer: ``(0, 1)`` for t = 2, ``(1, 1, 1, 1)`` for an answer at any time
            (:func:`~spikezip.train.fit_first_steps`; best with ``Residual.MS`` and ``initial_code=1``).
        on_stage: told each network on the way as it is done, ``"ANN"``, ``"QANN"`` and ``"integer QANN"``.

    Returns:
        The :class:`SNN`; ``verify(snn, images)`` proves that it equals ``snn.qann``.

    Raises:
        SpikezipError: naming the node that cannot be converted, and what to do.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    >>> images = torch.rand(32, 4)
    >>> snn = convert(model, images[:1], images, levels=8)
    >>> verify(snn, images).equal
    True
    """
    from spikezip.train import fit_first_steps

    done = on_stage or (lambda name, network: None)
    _refuse_one_image(example, calibration)
    original = capture(model, example)
    ann = _morph(original, morph)
    done("ANN", original)
    calibration = gather(ann, calibration, LIMIT)  # it is read several times, which an iterator cannot be
    given = {"signed_levels": signed_levels, "layer_levels": layer_levels, "original": original}
    step = None
    if fit_steps is None:
        qann = quantize(ann, levels, calibration, **given, refit=refit)
        _warn_if_far(original, qann, calibration[0])
    else:
        _refuse_beside_steps(refit=refit, bias_encoding=bias_encoding, slew=slew, initial_code=initial_code)
        assert initial_code != "mean"
        qann = quantize(ann, levels, **given)
        fit_first_steps(qann, original, calibration, fit_steps, encoding, initial_code=initial_code)
        last = max(t for t, weight in enumerate(fit_steps, 1) if weight)
        step = (last, encoding, initial_code)
    done("QANN", qann)
    if weight_bits is not None:
        whole = to_integer(qann, weight_bits, calibration=None if refit is False else calibration)
        before, after = (_answers(network, calibration[0], step) for network in (qann, whole))
        _warn_if_rounded(before, after, whole, weight_bits)
        qann = whole
        done("integer QANN", qann)
    start = mean_codes(qann, calibration) if initial_code == "mean" else initial_code
    return spike(qann, encoding, bias_encoding=bias_encoding, slew=slew, initial_code=start)


def _refuse_one_image(example: Any, calibration: Any) -> None:
    if isinstance(example, Tensor) and isinstance(calibration, Tensor) and calibration.shape[1:] == example.shape:
        raise InputError(
            f"The example has shape {tuple(example.shape)}, the calibration data {tuple(calibration.shape)}: the "
            "example has no batch dimension. Give a batch, images[:1] and not images[0]."
        )


@torch.no_grad()
def _answers(qann: fx.GraphModule, images: tuple[Tensor, ...], step: tuple[int, Encoding, int] | None) -> list[Tensor]:
    """What a network settles on, or what it gives at a step, with an encoding, from a code."""
    if step is None:
        return tree_leaves(qann(*images))
    snn = spike(qann, step[1], initial_code=step[2])
    return [output[-1] for output in execute(snn, images, step[0], engine=Engine.REFERENCE, stop=False).outputs]


_morph = morph


def _refuse_beside_steps(
    *, refit: bool | None, initial_code: Any, bias_encoding: Encoding | None = None, slew: int = 1
) -> None:
    """Refuse what makes other steps than those that weights are fitted for."""
    wrong = {
        "refit": refit is False,
        "bias_encoding": bias_encoding is not None,
        "slew": slew != 1,
        "initial_code": initial_code == "mean",
    }
    if other := [name for name, is_so in wrong.items() if is_so]:
        raise StageError(
            f"fit_steps does not go together with this {other[0]}: weights are fitted, for steps of one level, with "
            "biases released as the input is, from one known code. Leave one of both out."
        )


@torch.no_grad()
def _warn_if_far(ann: fx.GraphModule, qann: fx.GraphModule, images: tuple[Tensor, ...]) -> None:
    """Warn where morphing and quantizing have changed the answers by all that tells them apart."""
    for wanted, found in zip(tree_leaves(ann(*images)), tree_leaves(qann(*images)), strict=True):
        if not (far := _away(wanted, found)) <= _FARTHEST:
            warnings.warn(
                f"Quantizing changes the answers on the calibration data by {far:.0%} of their spread. Give more "
                "levels, or fine-tune; compare(ann, qann, images) says where it begins.",
                stacklevel=5,
            )


@torch.no_grad()
def _warn_if_rounded(before: list[Tensor], after: list[Tensor], whole: fx.GraphModule, bits: int) -> None:
    """Warn where rounded weights have changed the answers, or one of few, beyond what rounding usually does; or where
    the fixed point of the answers has, which more bits do not help."""
    for wanted, found, node in zip(before, after, network.outputs(whole), strict=True):
        if not bool(torch.isfinite(found[torch.isfinite(wanted)]).all()):
            raise StageError(
                "Answers on the calibration data are no longer finite with integer weights: a number in the network, "
                "such as a mask's, is too great. Mask with -inf, or numbers such as -1e4, or use weight_bits=None."
            )
        rounding = output_rounding(whole, node) if wanted.is_floating_point() else None
        if rounding is not None:
            step, most = 2.0**-rounding.exponent, rounding.limit * 2.0**-rounding.exponent
            cut = bool((wanted[torch.isfinite(wanted)].abs() > most).any())
            if cut or _farthest(wanted, rounding(wanted.double()))[0] > _FAR:
                warnings.warn(
                    "Answers on the calibration data are too great, or of too unlike size, for the fixed point in "
                    f"which an output is returned (steps of {step:.1g}, up to {most:.1g}). Return their logarithms, or "
                    "those of one size in an output of their own; or use weight_bits=None.",
                    stacklevel=5,
                )
                continue
        far, whose = _farthest(wanted, found)
        if not far <= _FAR:
            more = "Try more weight_bits, normalise" if bits < 16 else "Normalise"
            warnings.warn(
                f"Weights of {bits} bits change the answers on the calibration data by {far:.0%} of {whose}. "
                f"{more} the input's channels, or use weight_bits=None.",
                stacklevel=5,
            )


def _farthest(wanted: Tensor, found: Tensor) -> tuple[float, str]:
    """By how much answers are away, all together or, of few, the worst one; and of whose spread that is a part."""
    far, whose = _away(wanted, found), "their spread"
    if far <= _FAR and wanted.dim() > 1 and len(wanted) >= _ENOUGH and wanted[0].numel() <= _FEW:
        each = zip(wanted.flatten(1).unbind(1), found.flatten(1).unbind(1), strict=True)
        if (worst := max(_away(*entry) for entry in each)) > 2 * _FAR:
            far, whose = worst, "the spread of one of them"
    return far, whose


def _away(wanted: Tensor, found: Tensor) -> float:
    """The root mean square of a difference, as a part of the spread, of finite values; 0 where there is none."""
    finite = torch.isfinite(wanted)
    wanted, found = wanted[finite], found[finite]
    if not wanted.is_floating_point() or wanted.numel() < 2:
        return 0.0
    spread = wanted.double().std()
    return float((found - wanted).double().square().mean().sqrt() / spread) if spread > 0 else 0.0


def spike(
    qann: fx.GraphModule,
    encoding: Encoding = Pulse(),
    *,
    bias_encoding: Encoding | None = None,
    slew: int = 1,
    initial_code: int | Mapping[str, Tensor] | None = None,
) -> SNN:
    """Turn every quantizer of a QANN into a layer of ST-BIF neurons (see :func:`spikezip.spike.swap.spike`)."""
    value = _spike(qann, encoding, bias_encoding=bias_encoding, slew=slew, initial_code=initial_code)
    return SNN(value.graph, value.encoding, value.bias_encoding)


@building()
def load(path: str | Path) -> SNN:
    """Load an SNN that :meth:`SNN.save` wrote; BundleError says what is wrong with any other file."""
    from spikezip.export.bundle import load_snn

    value = load_snn(path)
    return SNN(value.graph, value.encoding, value.bias_encoding)


def report(
    records: Record | Mapping[str, Any] | str | Path | Sequence[Record | Mapping[str, Any] | str | Path],
    out: str | Path,
    *,
    figures: str | Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Make one self-contained HTML page from one or several records.

    Args:
        records: a :class:`Record`, its content, a ``record.json``, or a sequence of these.
        out: the page to write.
        figures: a folder for every figure as SVG and PDF, with its data as CSV.
        overwrite: replace what is there.

    Returns:
        The path of the page.

    Raises:
        BundleError: a record is malformed.
        OutputError: the page exists, or cannot be written.
    """
    from spikezip.report.page import write_report

    several = [records] if isinstance(records, Record | Mapping | str | Path) else list(records)
    plain = [r.content if isinstance(r, Record) else Path(r) if isinstance(r, str) else r for r in several]
    return write_report(plain, Path(out), figures=Path(figures) if figures else None, overwrite=overwrite)


@dataclass(frozen=True)
class SNN(SpikingNetwork):
    """A spiking neural network: run it, prove it, save it. It holds no state and is never changed."""

    def run(
        self,
        images: Tensor | Sequence[Tensor],
        steps: int | None = None,
        *,
        engine: Engine | None = None,
        batch: int | None = None,
        state: State | None = None,
        early_exit: EarlyExit | None = None,
    ) -> Run:
        """Run on images ``[N, ...]`` for ``steps`` steps, or until all have settled.

        With ``early_exit`` (:class:`~spikezip.run.Margin`, ...) each image leaves when its answer is clear enough.

        Returns:
            A :class:`~spikezip.run.Run`: ``.logits`` ``[T, N, ...]``, ``.settled_at`` ``[N]``, ``.outcome``, ...
        """
        chosen = default_engine(self) if engine is None else engine
        return execute(self, images, steps, engine=chosen, batch=batch, state=state, early_exit=early_exit)

    def stream(
        self,
        frames: Tensor | Sequence[Tensor],
        steps_per_frame: int,
        *,
        engine: Engine | None = None,
        batch: int = 64,
        state: State | None = None,
    ) -> Stream:
        """Run on frames ``[F, B, ...]``, each replacing the one before: only what changes costs spikes.

        Returns:
            A :class:`~spikezip.run.Stream`: ``.logits`` ``[F, B, ...]``, ``.settled`` ``[F, B]``, ``.total_spikes``.
        """
        chosen = default_engine(self) if engine is None else engine
        return stream(self, frames, steps_per_frame, engine=chosen, batch=batch, state=state)

    def to(self, device: torch.device | str) -> SNN:
        """A copy on a device, such as ``"cuda"``; images must lie there too."""
        return SNN(network.fork(self.graph).to(device), self.encoding, self.bias_encoding)

    def verify(self, images: Tensor | Sequence[Tensor]) -> Certificate:
        """See :func:`spikezip.verify`."""
        return verify(self, images)

    def to_integer(self, weight_bits: int = 8, *, calibration: Tensor | Iterable[Any] | None = None) -> SNN:
        """The same network with integer weights: equal to its QANN to the bit, in every engine and on every device.

        With ``calibration`` data weights are rounded so that they make up for one another.
        """
        new = to_integer(self.qann, weight_bits, calibration=calibration)
        return spike(
            new, self.encoding, bias_encoding=self.bias_encoding, slew=self.slew, initial_code=self.initial_code
        )

    @default_device()
    def save(self, path: str | Path, *, overwrite: bool = False, provenance: Mapping[str, Any] | None = None) -> Path:
        """Write the network to one file (safetensors and JSON); OutputError if it exists and not ``overwrite``."""
        from spikezip.export.bundle import save_bundle

        return save_bundle(self, path, overwrite=overwrite, provenance=provenance)

    def to_nir(self, *, exact: bool = True) -> nir.NIRGraph:
        """The network as a NIR graph, with the same spikes at every step; see :func:`spikezip.export.nir.to_nir`.

        ``nir.write(path, graph)`` writes it to a file.
        """
        from spikezip.export.nir import to_nir

        return to_nir(self, exact=exact)

    def note(self, key: str, default: Any = None) -> Any:
        """A choice made on the way here: ``residual``, ``weight_bits``, ``exactness``, ``fine_tuning``, ..."""
        return network.note(self.graph, key, default)
