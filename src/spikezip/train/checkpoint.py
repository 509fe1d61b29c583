"""The state of training as a value, and as one file: safetensors with JSON in its header. Never pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, fx, nn

from spikezip.errors import BundleError
from spikezip.graph.network import note
from spikezip.measure.saving import replacing
from spikezip.quantize.quantizer import Quantizer

FORMAT = "spikezip.checkpoint/1"


@dataclass(frozen=True)
class Checkpoint:
    """Everything training needs to go on as if it had not stopped.

    Attributes:
        tensors: ``network/NAME``, ``objective/NAME`` (what training has beside the network), averages of both as
            ``average/NAME`` and ``average/objective/NAME``, ``buffers/NAME`` (those that are not persistent), and
            ``optimizer/KEY/PARAMETER``, on the CPU.
        facts: JSON data: where training is, sums of the epoch, history, the plan, and what :func:`outline` says of the
            network and the data. A checkpoint from before it was written has none.
    """

    tensors: dict[str, Tensor]
    facts: dict[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under one prefix, without it."""
        return {n.removeprefix(f"{prefix}/"): t for n, t in self.tensors.items() if n.startswith(f"{prefix}/")}

    def check(self, plan: dict[str, Any], network: nn.Module, outlined: dict[str, Any]) -> None:
        """Raise BundleError unless this is a checkpoint of that network and :func:`outline`, and of that plan as far as
        it has come."""
        before = self.facts.get("plan", {})
        # None of these changes what is learned, but for where BatchNorm takes its statistics from, and dropout's draws.
        free = {"accumulate", "compile", "log_every", "checkpoint_every"}
        if mixes_images(plan):
            free.remove("accumulate")
        if all(self._not_yet(p.get("cooldown")) for p in (plan, before)):
            free.add("cooldown")
        changed = sorted(
            key for key in (plan.keys() | before.keys()) - free if not _is_same(plan.get(key), before.get(key))
        )
        if changed == ["cooldown"] and plan.get("cooldown") and not before.get("cooldown"):
            epoch = self.facts["epoch"] + (self.facts["step"] > 0)
            raise BundleError(
                f"The checkpoint is past epoch {plan['cooldown']['after']}, where the rate was to begin to fall. Give "
                f"the cooldown after={epoch} or later, or resume without one."
            )
        if changed:
            raise BundleError(
                f"The checkpoint is of another plan: {', '.join(changed)} differ. Resume with the plan "
                "it was begun with, or start anew in another folder."
            )
        shapes = {n: tuple(t.shape) for n, t in network.state_dict().items()}
        differ = [n for n, t in self.part("network").items() if shapes.pop(n, None) != tuple(t.shape)]
        if differ or shapes:
            name = [*differ, *shapes][0]
            raise BundleError(
                f"The checkpoint is of another network: {name!r} is missing or of another shape. "
                "Resume with the network it was begun with, or start anew in another folder."
            )
        for what, here in outlined.items():
            there = self.facts.get("outline", outlined).get(what, here)  # it once held less
            if there != here:
                raise BundleError(
                    f"The checkpoint is of another training: {what} differ ({_shown(there, here)}). Resume with the "
                    "recipe it was begun with, or start anew in another folder."
                )

    def _not_yet(self, cooldown: dict[str, Any] | None) -> bool:
        reached = (self.facts["epoch"], self.facts["step"])
        return cooldown is None or reached <= (cooldown["after"], 0)


def mixes_images(plan: dict[str, Any]) -> bool:
    """Whether a described plan trains on mixtures of two images, both of one part of a batch."""
    found: Any = plan
    for key in ("objective", "criterion", "distil", "mixed"):
        found = found.get(key) if isinstance(found, dict) else None
    return bool(found)


def outline(
    network: nn.Module, data: str, images: int, labels: Tensor | None = None, normalisation: Any = None
) -> dict[str, Any]:
    """What neither a plan nor the shapes of tensors say of a training, as JSON data.

    Args:
        network: to be trained.
        data: name of the data set.
        images: how many of them are trained on.
        labels: of all of them, where they are at hand; a fingerprint of them is kept.
        normalisation: of their pixels, where it is known.
    """
    outlined = {**operations_of(network), "data": f"{images} images of {data}"}
    if labels is not None:
        outlined["labels"] = hashlib.sha256(labels.cpu().contiguous().numpy().tobytes()).hexdigest()[:16]
    if normalisation is not None:
        outlined["normalisation"] = normalisation
    return outlined


def operations_of(network: nn.Module) -> dict[str, Any]:
    """A network's levels by quantizer, and a fingerprint of its operations if it is a graph."""
    quantizers = {name: m.levels for name, m in network.named_modules() if isinstance(m, Quantizer)}
    graph = str(network.graph) if isinstance(network, fx.GraphModule) else ""
    return {
        "levels": {name: f"{levels.lowest}..{levels.highest}" for name, levels in quantizers.items()},
        "operations": hashlib.sha256(graph.encode()).hexdigest()[:16],
    }


def shares_of(network: nn.Module) -> str | None:
    """The learned bias shares that a network carries, as text."""
    return note(network, "bias_shares") if isinstance(network, fx.GraphModule) and "spikezip" in network.meta else None


def shares_in(weights: Path) -> str | None:
    """Those of a readable ``network.safetensors``, in its header."""
    with safe_open(weights, framework="pt") as file:
        return (file.metadata() or {}).get("bias_shares")


def _is_same(here: Any, there: Any) -> bool:
    """Whether two descriptions agree; of a network, a checkpoint once kept the name of its type alone."""
    if isinstance(here, dict) and isinstance(there, dict):
        return here.keys() == there.keys() and all(_is_same(here[key], there[key]) for key in here)
    if isinstance(here, dict) and here.keys() == {"type", "weights"} and isinstance(there, str):
        return here["type"] == there
    return here == there


def _shown(there: Any, here: Any) -> str:
    """Two values, or the first of their entries that is not the same."""
    if isinstance(there, dict) and isinstance(here, dict):
        name = next(n for n in [*there, *here] if there.get(n) != here.get(n))
        return f"{name!r}: {_shown(there.get(name), here.get(name))}"
    return f"{there} there, {here} here"


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The optimizer's state by the names of parameters."""
    names = {id(p): name for name, p in parameters.items()}
    return {
        f"{key}/{names[id(parameter)]}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor], tensors: dict[str, Tensor]
) -> None:
    """The inverse of :func:`optimizer_tensors`."""
    for name, tensor in tensors.items():
        key, _, parameter = name.partition("/")
        owner = parameters[parameter]
        # torch keeps the step count of Adam on the CPU.
        optimizer.state[owner][key] = tensor.clone() if key == "step" else tensor.to(owner.device, copy=True)


def write(checkpoint: Checkpoint, target: Path) -> None:
    """Write a checkpoint; ``target`` is the old file or the whole new one, whenever the machine stops."""
    facts = {"format": FORMAT, **checkpoint.facts}
    write_tensors(checkpoint.tensors, target, {"spikezip": json.dumps(facts)})


def write_tensors(tensors: dict[str, Tensor], target: Path, header: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors, in one step."""
    # Tied weights would share memory, which safetensors refuses; a clone each is what loading makes of them anyway.
    apart = {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
    with replacing(target) as draft:
        # Not save_file: it writes to a name of its own beside the draft, which would stay when the machine stops.
        draft.write_bytes(save(apart, header))


def read(source: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        BundleError: the file is damaged, or not a checkpoint of spikezip.
    """
    try:
        with safe_open(source, framework="pt") as file:
            facts = json.loads((file.metadata() or {}).get("spikezip", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    except (SafetensorError, ValueError, OSError) as reason:
        raise BundleError(
            f"'{source}' cannot be read as a checkpoint: {reason}. Give another folder, or start anew with overwrite."
        ) from reason
    if facts.get("format") != FORMAT:
        raise BundleError(f"'{source}' is not a {FORMAT} file. Give another folder, or start anew with overwrite.")
    return Checkpoint(tensors, facts)


def write_json(value: Any, target: Path) -> None:
    """Write JSON in one step."""
    with replacing(target) as draft:
        draft.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
