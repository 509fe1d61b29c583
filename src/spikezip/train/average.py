"""Averaged weights: of one training's steps, or of several trainings."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from spikezip.errors import StageError
from spikezip.graph.network import Network, copied, note, remark
from spikezip.spike.encoding import Shares, encoding_text, parse_encoding
from spikezip.train.checkpoint import operations_of


@torch.no_grad()
def soup(networks: Sequence[Network]) -> Network:
    """One network whose weights and scales are the means of several networks', fine-tuned from the same start.

    Args:
        networks: the same network trained several times, with other seeds for example.

    Returns:
        A copy of the first with averaged floating-point tensors, and averaged bias shares if they were learned. It
        costs what one of them costs. What it is worth only validation images can tell: of networks that were not
        trained from the same weights it is worth nothing. A live BatchNorm's statistics are averaged too, which are
        not quite those of the averaged weights: training on, at however low a rate, takes them anew.

    Raises:
        StageError: there is none, their weights are integers already, or they are not one network: names, shapes or
            whole-number tensors differ, or levels, operations or where tracers start.

    Source: Wortsman et al., "Model soups", ICML 2022 (the uniform soup).
    """
    if isinstance(networks, nn.Module):
        raise StageError(f"soup() takes a list of networks; this is one {type(networks).__name__}. Give soup([a, b]).")
    if not networks:
        raise StageError("A soup is made of one network or more.")
    about = [_about(network) for network in networks]
    if any(facts.pop("weight_bits", None) for facts in about):
        raise StageError("The mean of integer weights needs more bits than they have: call soup() before to_integer().")
    result = copied(networks[0])
    states, mean = [network.state_dict() for network in networks], result.state_dict()
    counters = "num_batches_tracked"  # of a live BatchNorm; no mean asks how long each was trained
    for name in dict.fromkeys(n for state in states for n in state if n.rpartition(".")[2] != counters):
        found = [state[name].to("cpu") for state in states if name in state]
        first = found[0]
        alike = len(found) == len(states) and all(t.shape == first.shape for t in found)
        if not alike or not (first.is_floating_point() or all(torch.equal(t, first) for t in found)):
            raise StageError(f"These are not trainings of one network: {name!r} differs between them.")
        if first.is_floating_point():
            mean[name].copy_(torch.stack(found).to(torch.float64).mean(0))
    shares = [facts.pop("bias_shares", None) for facts in about]
    for what in dict.fromkeys(what for facts in about for what in facts):
        if len({repr(facts.get(what)) for facts in about}) > 1:
            raise StageError(f"These are not trainings of one network: they differ in {what}.")
    if len(set(shares)) > 1:
        remark(result, bias_shares=_mean_shares(shares))  # type: ignore[arg-type]  # only a graph has notes
    return result


def _about(network: nn.Module) -> dict[str, Any]:
    """What the tensors of a network do not say of it."""
    facts = operations_of(network)
    if isinstance(network, fx.GraphModule) and "spikezip" in network.meta:
        facts |= {"initial_code": note(network, "initial_code", 0), "strict": note(network, "strict", True)}
        facts |= {key: note(network, key) for key in ("weight_bits", "bias_shares")}
    return facts


def _mean_shares(texts: Sequence[str | None]) -> str:
    learned = [schedule.reached for text in texts if text and isinstance(schedule := parse_encoding(text), Shares)]
    if len(learned) < len(texts) or len({(len(reached), reached[-1]) for reached in learned}) > 1:
        raise StageError("These are not trainings of one network: bias shares were learned for other steps, or not.")
    return encoding_text(Shares(tuple(round(sum(parts) / len(parts)) for parts in zip(*learned, strict=True))))


class Average:
    """Exponential moving average of weights.

    ``a <- d a + (1 - d) w`` after each step, with ``d = min(decay, (1 + k) / (10 + k))``.

    Args:
        tensors: by name; those of floating point are followed.
        decay: share of the average that a step keeps; less during the first steps ``k``.

    Source: Polyak & Juditsky, SIAM J. Control Optim. 1992; the warm-up is TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, tensors: Mapping[str, Tensor], decay: float):
        self.decay = decay
        self.steps = 0
        self._live = {n: t for n, t in tensors.items() if t.is_floating_point()}
        self.tensors = {name: tensor.clone() for name, tensor in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Follow the tensors after a step."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        for name, tensor in self._live.items():
            self.tensors[name].lerp_(tensor, 1 - decay)

    def restore(self, tensors: dict[str, Tensor], steps: int) -> None:
        """Go on from a checkpoint; what it has no average of begins with its value now."""
        for name, tensor in self._live.items():
            self.tensors[name].copy_(tensors.get(name, tensor))
        self.steps = steps

    @torch.no_grad()
    def put(self) -> None:
        """Give the tensors their averages."""
        for name, tensor in self._live.items():
            tensor.copy_(self.tensors[name])

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """The tensors hold their averages inside the block, and their own values again after it."""
        own = {name: tensor.clone() for name, tensor in self._live.items()}
        self.put()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, tensor in self._live.items():
                    tensor.copy_(own[name])
