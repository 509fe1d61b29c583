"""The SNN's own first steps as something to train: trackers unrolled over time, all steps in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from spikezip.errors import RecipeError, StageError
from spikezip.graph.network import describe, modules_of
from spikezip.levels import Levels
from spikezip.morph.fold import LiveBatchNorm, weight_before
from spikezip.quantize.fused import fused
from spikezip.quantize.quantizer import Quantizer, gradient_scale, widened
from spikezip.spike.encoding import Constant, Encoding, Pulse, Shares, parse_encoding
from spikezip.spike.neuron import check_start, starting_code
from spikezip.train.checkpoint import shares_of
from spikezip.train.checks import are_weights, check_flag, check_kind, is_whole
from spikezip.train.ensemble import check_shared
from spikezip.train.folding import in_one_batch, parted
from spikezip.train.loss import CrossEntropy, Numbers, accuracy
from spikezip.train.objective import answers, beside, check_logits, check_teacher, with_features

#: Of a network whose steps cannot share a batch.
_ITS_END = (
    "its first steps cannot go through it in one, as to train or fit them asks. Train what it settles on (PET with "
    "execution=InTurn(), or QAT), or leave fit_steps out."
)


def unroll(
    qann: fx.GraphModule,
    steps: int,
    encoding: Encoding = Pulse(),
    *,
    settled: bool = True,
    bias_shares: BiasShares | None = None,
    activity: bool = False,
    initial_code: int = 0,
) -> fx.GraphModule:
    """The network whose outputs are those of the SNN at steps 1 to ``steps``, and of the QANN it settles on.

    As an SNN's values at step t are functions of what has accumulated by step t, all steps go through each operation
    in one batch ``[T*B, ...]``; only trackers look from one step to the next (:class:`Tracker`).

    Args:
        qann: a graph with quantizers. A live BatchNorm is one for all steps (see :class:`StepsBatchNorm`).
        steps: ``T``, how many steps.
        encoding: how the input, and the biases, are released.
        settled: whether the QANN's own answer follows the steps.
        bias_shares: learned shares of the biases, for as many steps.
        activity: give what :class:`Activity` counts, summed over all layers, as a second output.
        initial_code: where tracers start (see :func:`spikezip.spike`).

    Returns:
        A GraphModule from ``[B, ...]`` to ``[T + 1, B, ...]`` (``[T, ...]`` without ``settled``), the first step first.
        Its parameters **are** those of ``qann``, besides ``bias_shares``: training it trains ``qann``.

    Raises:
        StageError: ``qann`` is no graph, has no quantizer, mixes the batch into other dimensions, or has a live
            BatchNorm while bias shares are learned or nothing of the input arrives at the first step;
            ``initial_code`` is none of its codes; or a run of ``steps`` steps of the reference engine would refuse it.
    """
    check_shared(qann, one_batch=_ITS_END, live=True)
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise StageError(f"steps={steps!r}: a trajectory has a whole number of steps, 1 or more.")
    check_start(initial_code, (m.levels for m in qann.modules() if isinstance(m, Quantizer)))
    shares = [encoding.share(t, steps) for t in range(1, steps + 1)] + [1.0] * settled
    if min(shares) <= 0 or bias_shares is not None:
        for node, _ in modules_of(qann, LiveBatchNorm):
            raise StageError(
                f"{describe(node)} is a live BatchNorm, which asks of each step what it would be if all had arrived. "
                "Something must arrive at the first, and as much of biases as of inputs: use Pulse() or Even(n) "
                "without learned bias shares, or morph() without batch_norm=LIVE."
            )

    norms = modules_of(qann, LiveBatchNorm)
    # What cannot be folded into a layer will be a product and a sum, whose addend arrives whole, unlike a bias.
    released = {module for node, module in norms if min(shares) < 1 and weight_before(node) is not None}

    def read(module: Any, dim: int) -> nn.Module:
        if isinstance(module, LiveBatchNorm):
            return StepsBatchNorm(module, shares, dim) if module in released else module
        initial = starting_code(module.levels, initial_code)
        return Tracker(module.scale, module.levels, steps, settled, dim, initial)

    unrolled = in_one_batch(qann, shares, read, bias_shares)
    return _with_activity(unrolled) if activity else unrolled


def _with_activity(unrolled: fx.GraphModule) -> fx.GraphModule:
    graph, output = unrolled.graph, unrolled.graph.output_node()
    counted = []
    for node in [n for n in graph.nodes if n.op == "call_module"]:
        if isinstance(tracker := unrolled.get_submodule(str(node.target)), Tracker):
            name = f"activity{len(counted)}"
            unrolled.add_submodule(name, Activity(tracker))
            with graph.inserting_before(output):
                counted.append(graph.call_module(name, (node,)))
    with graph.inserting_before(output):
        output.args = ((output.args[0], graph.call_function(sum, (counted,))),)
    unrolled.recompile()
    return unrolled


class BiasShares(nn.Module):
    """The shares of the biases that have arrived by each of ``T`` steps, learned.

    ::

        c_t = round(256 clip(c_t, 0, 1)) / 256   for t < T,        c_T = 1

    Rounding and clip pass the gradient on unchanged, so that what is trained is what :class:`~spikezip.spike.Shares`
    holds exactly. A share may fall from one step to the next: the theorem asks only that all has arrived by a finite
    step (C3).

    Args:
        encoding: where the shares start.
        steps: ``T``.
        settled: whether the QANN's own values follow the steps; their share is 1.
    """

    def __init__(self, encoding: Encoding, steps: int, settled: bool):
        super().__init__()
        if steps < 2:
            raise RecipeError("Learned bias shares need 2 steps or more: by the last step all of a bias has arrived.")
        self.reached = nn.Parameter(torch.tensor([encoding.share(t, steps) for t in range(1, steps)], device="cpu"))
        self.settled = settled

    def forward(self) -> Tensor:
        used = (self._parts() / _WHOLE) + (self.reached - self.reached.detach())
        return torch.cat([used, used.new_ones(1 + self.settled)])

    def encoding(self) -> Shares:
        """The schedule as an SNN takes it."""
        return Shares((*(int(parts) for parts in self._parts().tolist()), _WHOLE))

    def _parts(self) -> Tensor:
        return (self.reached.detach().clamp(0, 1) * _WHOLE).round()


_WHOLE = 256


class StepsBatchNorm(nn.Module):
    """A live BatchNorm of a trajectory: one affine map for all steps, of whose shift each has its share.

    ::

        y_t = s_t BN(u_t / s_t) = a u_t + s_t b         a, b  from the statistics of all steps together

    which is what it will be once it is folded into the layer before it, as part of whose bias ``b`` is released.

    Args:
        norm: the QANN's own module.
        shares: of the input and the biases that have arrived, ``P`` of them, above 0.
        batch_dim: the dimension that holds the ``P * B`` samples, step after step.

    Shape: ``[P*B, ...]`` to the same.
    """

    shares: Tensor

    def __init__(self, norm: LiveBatchNorm, shares: Sequence[float], batch_dim: int = 0):
        super().__init__()
        self.norm = norm
        self.batch_dim = batch_dim
        self.register_buffer("shares", torch.tensor(shares, device="cpu"), persistent=False)

    def forward(self, drive: Tensor) -> Tensor:
        each = drive.shape[self.batch_dim] // len(self.shares)
        column = self.shares.to(drive).repeat_interleave(each)
        column = column.view([-1 if i == self.batch_dim else 1 for i in range(drive.dim())])
        return self.norm(drive / column) * column


class Tracker(nn.Module):
    """The tracers of one layer at all steps of a trajectory, with straight-through gradients.

    ::

        S_t = S_{t-1} + clip(Q(U_t) - S_{t-1}, -1, +1)        out_t = theta * S_t

    Where a tracer has arrived (``S_t = Q(U_t)``) the gradient is LSQ's; where it lags, ``S_t = S_{t-1} +- 1`` follows
    the step before, and so does the gradient.

    Args:
        scale: the QANN's own scale parameter, shared.
        levels: limits of the tracer.
        steps: how many steps the batch holds, step after step.
        settled: whether the QANN's values, quantized alone, follow them.
        batch_dim: the dimension that holds the samples of all steps.
        initial: ``S_0``.

    Shape: ``[(T + settled) * B, ...]`` to the same.
    """

    def __init__(
        self, scale: nn.Parameter, levels: Levels, steps: int, settled: bool, batch_dim: int = 0, initial: int = 0
    ):
        super().__init__()
        self.scale = scale
        self.levels = levels
        self.steps = steps
        self.settled = settled
        self.batch_dim = batch_dim
        self.initial = initial

    def forward(self, drive: Tensor) -> Tensor:
        rows = self.steps + self.settled
        unfolded = drive.unflatten(self.batch_dim, (rows, drive.shape[self.batch_dim] // rows))
        gain = gradient_scale(drive, self.levels.magnitude, self.batch_dim)
        out = _Track.apply(
            unfolded.movedim(self.batch_dim, 0),
            self.scale,
            self.levels.lowest,
            self.levels.highest,
            self.steps,
            self.initial,
            gain,
        )
        return out.movedim(0, self.batch_dim).flatten(self.batch_dim, self.batch_dim + 1)  # type: ignore[union-attr]

    def extra_repr(self) -> str:
        return f"{self.levels.lowest}..{self.levels.highest} from {self.initial}, {self.steps} steps"


class Activity(nn.Module):
    """How much a layer's trackers move, and how far from rest they are left, with straight-through gradients.

    ::

        spikes = sum_t |S_t - S_{t-1}|        distance = |S_T - Q(U)|        U the QANN's own drive

    Args:
        tracker: of that layer, with the QANN's values behind its steps or without.

    Shape: what the tracker gave, to ``[2]``: spikes and distance, summed over neurons and images; the distance is 0
    without the QANN's values.
    """

    def __init__(self, tracker: Tracker):
        super().__init__()
        self.scale = tracker.scale
        self.levels = tracker.levels
        self.steps, self.settled, self.batch_dim = tracker.steps, tracker.settled, tracker.batch_dim
        self.initial = tracker.initial

    def forward(self, values: Tensor) -> Tensor:
        gain = gradient_scale(values, self.levels.magnitude, self.batch_dim)
        # The tracker's own gradient of the scale has this factor; the division's is to have it too.
        scale = self.scale.detach() + gain * (self.scale - self.scale.detach())
        codes = parted(values, self.steps + self.settled, self.batch_dim) / scale
        spikes = (codes[0] - self.initial).abs().sum() + (codes[1 : self.steps] - codes[: self.steps - 1]).abs().sum()
        left = (codes[self.steps - 1] - codes[self.steps]).abs().sum() if self.settled else torch.zeros_like(spikes)
        return torch.stack([spikes, left])


@dataclass(frozen=True)
class Penalty:
    """What a trajectory's loss asks for beside the right answers; see :class:`Activity` for what is counted.

    Args:
        spikes: weight of the spikes of an image in the trained steps.
        settling: weight of the levels by which an image's tracers then still differ from the QANN's codes: what lies
            between the last trained step and equilibrium (T_eq).

    Source: the sum of spikes as a regulariser is usual for SNNs (e.g. Zenke & Vogels, Neural Computation 2021).
    """

    spikes: float = 0.0
    settling: float = 0.0

    def __post_init__(self):
        if not are_weights((self.spikes, self.settling)):
            raise RecipeError(f"{self}: a penalty's weight is a number, 0 or more.")

    def __bool__(self) -> bool:
        return bool(self.spikes or self.settling)


class _Track(torch.autograd.Function):
    """``[T (+ 1), B, ...]`` drives to the same of values, with the gradients of :class:`Tracker`."""

    @staticmethod
    def forward(ctx, drive, scale, lowest, highest, steps, initial, gain):  # type: ignore[override]
        out = _follow(drive, scale, lowest, highest, steps, initial)
        ctx.save_for_backward(drive, scale, out)  # out is kept anyway, by the operation that reads it
        ctx.limits = lowest, highest, steps
        ctx.initial, ctx.gain = initial, gain
        return out

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        drive, scale, out = ctx.saved_tensors
        if (wide := widened(drive, scale)).dtype is not drive.dtype:  # rounded values no longer tell codes
            out = _follow(wide, scale, *ctx.limits, initial=ctx.initial)
        through, per_scale = _hand_back(grad, drive, scale, out, *ctx.limits)
        return through, per_scale.to(scale.dtype) * ctx.gain, None, None, None, None, None


@fused
def _follow(drive: Tensor, scale: Tensor, lowest: int, highest: int, steps: int, initial: int) -> Tensor:
    goals = torch.clamp(torch.floor(widened(drive, scale) / scale + 0.5), lowest, highest)
    rows = [torch.clamp(goals[0], initial - 1, initial + 1)]
    for t in range(1, steps):
        rows.append(torch.maximum(torch.minimum(goals[t], rows[-1] + 1), rows[-1] - 1))
    rows += goals[steps:].unbind(0)
    values = torch.stack(rows) * scale
    return values if values.dtype is drive.dtype else values.to(drive.dtype)


@fused
def _hand_back(
    grad: Tensor, drive: Tensor, scale: Tensor, out: Tensor, lowest: int, highest: int, steps: int
) -> tuple[Tensor, Tensor]:
    """From the last step to the first: a lagging tracer hands its gradient to the step before."""
    ratio = widened(drive, scale) / scale
    codes = torch.floor(out / scale + 0.5)
    arrived = torch.clamp(torch.floor(ratio + 0.5), lowest, highest) == codes
    rows = list(grad.unbind(0))
    for t in range(steps - 1, 0, -1):
        late = torch.where(arrived[t], torch.zeros_like(rows[t]), rows[t])
        rows[t - 1], rows[t] = rows[t - 1] + late, rows[t] - late
    through = torch.stack(rows) * (arrived & (ratio > lowest) & (ratio < highest))
    # theta * S_t is read with grad; S_t itself falls as U/theta**2 where the staircase is climbed.
    return through, (grad * codes - through * ratio).sum(dtype=scale.dtype)


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Training of the SNN's first ``T`` steps as they are, lag included, beside the QANN they settle on.

    ``L = sum_t w_t CE(z_t, y) + w_settled CE(z_QANN, y)``, divided by the sum of all weights, with distillation and
    label smoothing where the criterion says so. ``weights=(0, 1)`` trains one network for the answer at t = 2;
    ``weights=(1, 1, 1, 1)`` an *anytime* network.

    Args:
        weights: ``w_1 ... w_T``; their number is the number of steps.
        encoding: how the SNN will be given its input; not ``Constant()``, whose steps are those of the run.
        settled: ``w_settled``; 0 leaves the QANN's own answer out of training (and of its cost).
        criterion: the loss of each answer.
        teacher: a network whose logits the criterion learns from (it is copied, and never changed).
        learn_bias_shares: learn when biases arrive (:class:`BiasShares`), from what the network has learned before or,
            if that takes more steps or there is none, from the encoding; ``spike`` then releases them so, unless it is
            told otherwise.
        penalty: weights of spikes and of the way to equilibrium, added to the loss.
        initial_code: where tracers start; ``spike`` then starts them there, unless it is told otherwise.

    Raises:
        RecipeError: a weight is none, all are 0, or the encoding is ``Constant()``.

    Source: spikezip. Unrolling through time with straight-through gradients is surrogate-gradient training (Neftci et
    al., 2019); here the neuron is the converted one, so that what was trained is what settles on the QANN.
    """

    weights: tuple[float, ...]
    encoding: Encoding = Pulse()
    settled: float = 0.0
    criterion: CrossEntropy = field(default_factory=CrossEntropy)
    teacher: nn.Module | None = None
    learn_bias_shares: bool = False
    penalty: Penalty = Penalty()
    initial_code: int = 0

    def __post_init__(self):
        if not (are_weights(self.weights) and self.weights):
            raise RecipeError(
                f"weights={self.weights!r}: give the loss's weight at each step, each 0 or more, as (0, 1)."
            )
        if not are_weights((self.settled,)):
            raise RecipeError(f"settled={self.settled!r}: a loss's weight is a number, 0 or more.")
        if isinstance(self.encoding, Constant):
            raise RecipeError(
                "Constant() spreads the input over all steps of a run, which may be more than are trained. Use "
                f"Even({len(self.weights)}), which ends with them."
            )
        check_kind("criterion", self.criterion, CrossEntropy, "CrossEntropy()")
        check_kind("penalty", self.penalty, Penalty, "Penalty(spikes=1e-6)")
        check_flag("learn_bias_shares", self.learn_bias_shares)
        check_teacher(self.teacher)
        if not is_whole(self.initial_code) or self.initial_code < 0:
            raise RecipeError(f"initial_code={self.initial_code!r}: tracers start at a whole number, 0 or more.")
        if sum(self.weights) + self.settled == 0:
            raise RecipeError("All weights are 0: nothing would be trained. Give the last step a weight, as in (0, 1).")

    def module(self, network: nn.Module) -> nn.Module:
        """The unrolled network, beside the teacher if there is one."""
        steps, settled = len(self.weights), self._settles
        unrolled = unroll(
            network,  # type: ignore[arg-type]  # unroll refuses what is no graph
            steps,
            self.encoding,
            settled=settled,
            bias_shares=BiasShares(self._shares_from(network), steps, settled) if self.learn_bias_shares else None,
            activity=bool(self.penalty),
            initial_code=self.initial_code,
        )
        return beside(unrolled, self.teacher, self.criterion, readings=steps + settled, index=self._last - 1)

    def _shares_from(self, network: nn.Module) -> Encoding:
        """Where bias shares start: those that the network has, if all has arrived within the steps."""
        learned = parse_encoding(text) if (text := shares_of(network)) else self.encoding
        return learned if learned.t_off(len(self.weights)) <= len(self.weights) else self.encoding

    @property
    def _last(self) -> int:
        """The last step with a weight; where none has, the QANN's own answer, behind all steps."""
        return max((t for t, w in enumerate(self.weights, 1) if w), default=len(self.weights) + 1)

    @property
    def _settles(self) -> bool:
        return self.settled > 0 or self.penalty.settling > 0

    def loss(self, module: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Numbers]:
        """``L``, and the accuracy at every step; ``accuracy`` is that of the last step with a weight."""
        logits, teacher, features = answers(module, images, labels, self.criterion)
        logits, activity = logits if self.penalty else (logits, None)
        check_logits(logits, 3, labels, teacher)
        weights = (*self.weights, self.settled) if self._settles else self.weights
        loss = logits.new_zeros(())
        numbers: Numbers = {}
        for t, (weight, answer) in enumerate(zip(weights, logits, strict=True), 1):
            name = f"t{t}" if t <= len(self.weights) else "settled"
            if weight:
                part, _ = self.criterion(answer, labels, teacher)
                loss = loss + weight / sum(weights) * part
                numbers[f"loss/{name}"] = part.detach()
            numbers[f"accuracy/{name}"] = accuracy(answer, labels)
        if activity is not None:
            activity = activity / len(labels)
            penalty = activity @ activity.new_tensor([self.penalty.spikes, self.penalty.settling])
            loss = loss + penalty
            numbers |= {"penalty": penalty.detach(), "spikes": activity[0].detach()}
            if self._settles:
                numbers["unsettled"] = activity[1].detach()
        last = f"t{self._last}" if self._last <= len(self.weights) else "settled"
        numbers["accuracy"] = numbers[f"accuracy/{last}"]
        return with_features((loss, numbers), self.criterion, features)
