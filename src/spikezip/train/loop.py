"""The training loop: any objective, one or many processes, resumable to the same result."""

from __future__ import annotations

import atexit
import contextlib
import functools
import inspect
import math
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_map

from spikezip.errors import DataError, InputError, RecipeError, StageError
from spikezip.graph import network as graph_network
from spikezip.graph.network import Network
from spikezip.morph.fold import LiveBatchNorm, fold_batch_norm
from spikezip.quantize.quantizer import Quantizer
from spikezip.spike.encoding import encoding_text
from spikezip.train import checkpoint as files
from spikezip.train.average import Average
from spikezip.train.batches import Data, TensorBatches, stream
from spikezip.train.checkpoint import Checkpoint
from spikezip.train.folder import Folder
from spikezip.train.loss import Numbers
from spikezip.train.objective import PET, QAT, Taught
from spikezip.train.plan import Plan, Precision, describe, scales_of
from spikezip.train.progress import EpochDone, Event, Listener, Saved, StepDone, bar_or_lines
from spikezip.train.speq import SPEQ, RandomQuantizer, SelfTaught
from spikezip.train.sums import Sums
from spikezip.train.trajectory import BiasShares, Trajectory

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True, eq=False)
class Training:
    """What training gave: the new network, and one record an epoch."""

    network: nn.Module
    history: tuple[EpochDone, ...]


def finetune(
    network: Network,
    data: Data,
    plan: Plan,
    *,
    out: Path | str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_event: Listener | None = None,
) -> Network:
    """Train a network, and return the trained one; see :func:`train`, which returns the history too."""
    trained = train(network, data, plan, out=out, resume=resume, overwrite=overwrite, on_event=on_event)
    return trained.network  # type: ignore[return-value]  # a deep copy keeps its type


def train(
    network: nn.Module,
    data: Data,
    plan: Plan,
    *,
    out: Path | str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_event: Listener | None = None,
) -> Training:
    """Train a copy of a network: an ANN, or a QANN.

    Every step is a function of (plan, step number): data order, augmentation, dropout and learning rate are drawn or
    computed anew from them. So a run that is killed and resumed gives the same bits (on hardware whose kernels do), and
    ``accelerate launch`` with ``W`` processes takes the same steps as one process, to the rounding of sums. Only what a
    part of a batch has of its own is then of smaller parts: the statistics of an ANN's, or a live, BatchNorm, the draws
    of dropout, and which images are mixed (``Distil(mixed=True)``).

    Args:
        network: it is not changed.
        data: the splits that the plan names; labelled images.
        plan: how to train.
        out: folder for ``checkpoint.safetensors`` (the latest), ``history.json`` and, at the end,
            ``network.safetensors``; None writes nothing.
        resume: go on from the checkpoint in ``out``, if there is one.
        overwrite: start anew although ``out`` holds files; those of an earlier run, ``snn.spikezip`` too, are removed
            when the first checkpoint is written.
        on_event: is told of steps, epochs and files, in the main process. By default a progress bar on a
            terminal, and lines where there is none.

    Returns:
        The trained copy, in evaluation mode, where the network was (CPU or GPU), and the history. With ``plan.ema``,
        the averaged weights. A QANN's live BatchNorm is folded, so that ``spike`` can take it.

    Raises:
        RecipeError: the plan is none or does not fit, or the loss or a weight is no longer finite.
        StageError: the network cannot be trained with this objective, or not under ``torch.inference_mode()``.
        DataError: there is nothing to train on.
        InputError: images are of another type than the network takes, or the data has no batches to ask for.
        OutputError: ``out`` is not empty and neither ``resume`` nor ``overwrite`` was said, cannot be written, or
            another training is writing there.
        BundleError: the checkpoint in ``out`` is damaged or of another plan, network or data set.

    >>> from spikezip.train import SGD, Plan, TensorBatches
    >>> images = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    >>> data = TensorBatches(images, (images[:, 0] > 0).long(), held_out=16)
    >>> done = train(nn.Linear(4, 2), data, Plan(epochs=8, batch=8, optimizer=SGD(rate=0.5)))
    >>> done.history[-1].validation["accuracy"] > 0.8
    True
    """
    _check_given(data, plan)
    _check_network(network)
    # A captured graph has the parameters alone that it uses, in outputs that spikezip's own losses read; of another
    # network, or for another loss, some may have no gradient.
    all_used = _is_captured(network) and type(plan.objective) in (QAT, PET, SPEQ, Trajectory)
    accelerator = _accelerator(plan.precision, unused_parameters=not all_used)
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        if on_event is None and accelerator.is_main_process:
            on_event = bar_or_lines(stack)
        tell = on_event if on_event is not None and accelerator.is_main_process else _silence
        device = accelerator.device
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        folder = Folder(Path(out), accelerator) if out is not None else None
        start = None
        if folder is not None:
            stack.enter_context(folder.claimed())
            start = folder.open(resume=resume, overwrite=overwrite)
        run = _Run(network, data, plan, accelerator, tell)
        if start is not None:
            run.restore(start)
        run.run(folder)
        result, live = run.result(next(iter(network.parameters())).device)
        if folder is not None:
            folder.finish(result, live, [record.as_json() for record in run.history], run.pixels)
        return Training(result, tuple(run.history))


class _Box(nn.Module):
    """What accelerate may wrap and patch, so that the network itself stays as it is."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, images: Any) -> Any:
        return self.module(images)


class _Run:
    """One training in progress."""

    def __init__(self, network: nn.Module, data: Data, plan: Plan, accelerator: Accelerator, tell: Listener):
        self.plan, self.data, self.accelerator, self.tell = plan, data, accelerator, tell
        self.described = describe(plan)  # before an objective may keep something of this training
        self.epoch = self.step = 0
        # Convolutions are faster channels last. A captured graph reshapes; a user's own module may insist on views.
        self.layout = torch.channels_last
        self.takes = graph_network.info(network).inputs[0].dtype if _is_captured(network) else None
        self.student = _laid_out(graph_network.copied(network).to(accelerator.device), self.layout)
        self.plain = plan.objective.module(self.student).to(accelerator.device)
        # A teacher of spikezip's own never changes, or is made of the network.
        self._fixed = ("teacher.",) if isinstance(self.plain, Taught | SelfTaught) else ()
        for name, value in self.plain.state_dict().items():
            if not isinstance(value, Tensor) and not name.startswith(self._fixed):
                raise StageError(
                    f"{name!r} is a {type(value).__name__}, and a training's state is of tensors alone. Keep it in a "
                    "buffer, not in get_extra_state()."
                )
        if not _is_captured(network) and not self._can_step():
            self.layout = torch.contiguous_format
            _laid_out(self.student, self.layout)
        # Every batch has the same shape, so none of it is to be compiled as one that varies.
        whole: Any = torch.compile(self.plain, dynamic=False) if plan.compile else self.plain
        self.module: nn.Module = accelerator.prepare_model(_Box(whole))
        self.bare_optimizer = plan.optimizer.build(plan.groups(self.student, self.plain))
        self.optimizer = accelerator.prepare_optimizer(self.bare_optimizer)
        # What the objective trains beside the network (bias shares, free scales) is averaged with it.
        followed = self.student.state_dict() | {f"objective/{n}": t for n, t in self._beside().items()}
        self.average = Average(followed, plan.ema) if plan.ema is not None else None
        self.scales = scales_of(self.student, self.plain)
        own = {id(p) for p in self.student.parameters()}
        self.parameters = dict(self.student.named_parameters()) | {
            f"objective/{n}": p for n, p in self.plain.named_parameters() if p.requires_grad and id(p) not in own
        }
        self.history: list[EpochDone] = []
        self.sums = Sums(accelerator)
        world, count = accelerator.num_processes, data.count(plan.train_split)
        if count == 0:
            raise DataError(f"The split {plan.train_split!r} has no images: there is nothing to train on.")
        held_out = data.count(plan.validation_split) if plan.validation_split is not None else 0
        validated = min(held_out, plan.validation_images or held_out)
        if 0 < validated < world:
            raise RecipeError(f"{validated} validation image(s) for {world} processes: use one each or more.")
        # Fewer images than a batch: one batch of them all, cut as the plan says.
        self.part, rest = divmod(min(plan.batch, count), plan.accumulate)
        if self.part < world:
            raise RecipeError(
                f"A batch of {min(plan.batch, count)} in {plan.accumulate} accumulation steps gives less than one "
                f"image to each of {world} processes. Use a greater batch or a smaller accumulate."
            )
        if self.part < 2 * world and files.mixes_images(self.described):
            raise RecipeError(
                f"mixed=True mixes images of one part of a batch; {min(plan.batch, count)} in {plan.accumulate} "
                f"accumulation steps of {world} process(es) give a part of one. Use a greater batch or a smaller "
                "accumulate."
            )
        if rest:
            raise RecipeError(
                f"The {count} images of {plan.train_split!r}, fewer than batch={plan.batch}, cannot be cut into "
                f"accumulate={plan.accumulate} equal parts. Use batch={count - rest}, or another accumulate."
            )
        images = min(count, plan.train_images or count)
        self.steps = max(images // (self.part * plan.accumulate), 1)

    def _can_step(self) -> bool:
        """Whether images can be trained on in the layout that has been chosen: one small step of a copy shows it."""
        images, labels = next(self._batches(self.plan.train_split, train=False), (None, None))
        if not isinstance(images, Tensor) or images.dim() != 4 or labels is None:
            return False
        try:
            loss, _ = self.plan.objective.loss(graph_network.copied(self.plain).train(), images[:2], labels[:2])
            loss.backward()
        except (RuntimeError, ValueError):  # a view; or too few values for BatchNorm, or what is met again and reported
            return False
        return True

    # -- state ---------------------------------------------------------------------------------------------------------

    def checkpoint(self) -> Checkpoint:
        tensors = {f"network/{n}": t for n, t in self.student.state_dict().items()}
        tensors |= {
            f"optimizer/{n}": t for n, t in files.optimizer_tensors(self.bare_optimizer, self.parameters).items()
        }
        if self.average is not None:
            tensors |= {f"average/{n}": t for n, t in self.average.tensors.items()}
        tensors |= {f"objective/{n}": t for n, t in self._beside().items()}
        tensors |= {f"buffers/{n}": t for n, t in self._unnamed().items()}
        scaler = self.accelerator.scaler
        facts = {
            "epoch": self.epoch,
            "step": self.step,
            "sums": self.sums.as_json(),
            "history": [record.as_json() for record in self.history],
            "scaler": scaler.state_dict() if scaler is not None else None,
            "plan": self.described,
            "outline": self._outline(),
        }
        return Checkpoint(tensors, facts)

    def _outline(self) -> dict[str, Any]:
        name = getattr(self.data, "name", type(self.data).__name__)
        labels = self.data.labels if isinstance(self.data, TensorBatches) else None
        pixels = list(self.pixels.values()) or None
        return files.outline(self.student, name, self.data.count(self.plan.train_split), labels, pixels)

    @property
    def pixels(self) -> dict[str, list[float]]:
        """Mean and standard deviation that the data's pixels were normalised with, where they say so."""
        found = {each: getattr(self.data, each, None) for each in ("mean", "std")}
        return {each: list(values) for each, values in found.items() if isinstance(values, tuple)}

    def _beside(self) -> dict[str, Tensor]:
        """What the objective has beside the network (statistics, scales), without what never changes."""
        known = {t.data_ptr() for t in self.student.state_dict().values()}
        state = self.plain.state_dict()
        return {n: t for n, t in state.items() if not n.startswith(self._fixed) and t.data_ptr() not in known}

    def _unnamed(self) -> dict[str, Tensor]:
        """Buffers that no ``state_dict`` has (``persistent=False``), which training may change none the less."""
        state = self.plain.state_dict()
        return {n: b for n, b in self.plain.named_buffers() if n not in state and not n.startswith(self._fixed)}

    @torch.no_grad()
    def restore(self, start: Checkpoint) -> None:
        start.check(self.described, self.student, self._outline())
        self.student.load_state_dict(start.part("network"))
        beside = self._beside()
        for name, tensor in start.part("objective").items():
            beside[name].copy_(tensor)
        unnamed = self._unnamed()
        for name, tensor in start.part("buffers").items():
            if name in unnamed:
                unnamed[name].resize_(tensor.shape).copy_(tensor)
            else:  # made by a step
                owner, _, own = name.rpartition(".")
                tensor = tensor.to(self.accelerator.device)
                self.plain.get_submodule(owner).register_buffer(own, tensor, persistent=False)
        files.restore_optimizer(self.bare_optimizer, self.parameters, start.part("optimizer"))
        if self.average is not None:
            self.average.restore(start.part("average"), steps=start.facts["epoch"] * self.steps + start.facts["step"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(start.facts["scaler"])
        self.epoch, self.step = start.facts["epoch"], start.facts["step"]
        self.sums.restore(start.facts["sums"])
        self.history = [EpochDone(**record) for record in start.facts["history"]]

    def result(self, device: torch.device) -> tuple[nn.Module, dict[str, Tensor] | None]:
        """The trained network, and where its BatchNorm was live, its tensors as they were before that was folded."""
        live = None
        if self.average is not None:
            self.average.put()
        result = _laid_out(self.student.to("cpu"), torch.contiguous_format).eval()
        result.zero_grad()
        if isinstance(result, fx.GraphModule) and _is_captured(result):
            if graph_network.info(result).stage is graph_network.Stage.QANN:
                if any(isinstance(module, LiveBatchNorm) for module in result.modules()):
                    live = {name: tensor.clone() for name, tensor in result.state_dict().items()}
                fold_batch_norm(result)
            shares = [encoding_text(m.encoding()) for m in self.plain.modules() if isinstance(m, BiasShares)]
            kind = type(self.plan.objective).__name__.lower()
            graph_network.remark(result, fine_tuning=kind)
            if isinstance(self.plan.objective, Trajectory):
                graph_network.remark(result, initial_code=self.plan.objective.initial_code)
            if shares or graph_network.note(result, "bias_shares"):
                graph_network.remark(result, bias_shares=shares[0] if shares else None)
        return result.to(device), live

    # -- training ------------------------------------------------------------------------------------------------------

    def run(self, folder: Folder | None) -> None:
        if self.plan.compile and self.epoch < self.plan.last_epoch:
            self._check_compiled()
        while self.epoch < self.plan.last_epoch:
            began = time.perf_counter()
            self._epoch(folder)
            self._agree()
            loss, numbers, images = self.sums.means()
            self.sums.clear()
            self._check_weights()
            validation = self._validate()
            self.epoch, self.step = self.epoch + 1, 0
            record = EpochDone(
                epoch=self.epoch,
                epochs=self.plan.last_epoch,
                images=images,
                loss=loss,
                numbers=numbers,
                validation=validation,
                rate=self.plan.rate_at(self.epoch),
                seconds=time.perf_counter() - began,
            )
            self.history.append(record)
            self.tell(record)
            if folder is not None:
                self._save(folder)

    def _check_compiled(self) -> None:
        """Refuse a compiler that loses gradients, which torch's own does in some versions and says nothing."""
        self._draw()
        images, labels = next(self._batches(self.plan.train_split, train=True))
        before = [buffer.clone() for buffer in self.plain.buffers()]
        norms = []
        for module in (self.plain.train(), self.module.train()):
            with self.accelerator.autocast():
                loss, _ = self._loss(module, images, labels)
            loss.backward()
            norms.append([0.0 if p.grad is None else float(p.grad.norm()) for p in self.parameters.values()])
            self.plain.zero_grad()
        with torch.no_grad():
            for buffer, old in zip(self.plain.buffers(), before, strict=True):
                buffer.copy_(old)
        for name, own, compiled in zip(self.parameters, *norms, strict=True):
            if own and not compiled:
                raise RecipeError(
                    f"torch.compile of torch {torch.__version__} loses the gradient of {name!r}: it would not be "
                    "trained. Leave compile out, or take another version of torch."
                )

    def _epoch(self, folder: Folder | None) -> None:
        plan = self.plan
        self.module.train()
        parts = self._batches(plan.train_split, train=True)
        while self.step < self.steps:
            self._optimize([next(parts) for _ in range(plan.accumulate)])
            self.step += 1
            saves = plan.checkpoint_every and (self.epoch * self.steps + self.step) % plan.checkpoint_every == 0
            if self.step % plan.log_every == 0 or self.step == self.steps or saves:
                self._report()
            if saves and folder is not None and self.step < self.steps:
                self._agree()
                self._check_weights()
                self._save(folder)

    def _optimize(self, parts: list[tuple[Any, Tensor]]) -> None:
        plan, accelerator = self.plan, self.accelerator
        torch.manual_seed(stream(plan.seed, self.epoch, self.step, accelerator.process_index))
        self._draw()
        # The middle of the step: neither the first nor the last has rate 0.
        share = plan.rate_at(self.epoch + (self.step + 0.5) / self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["height"] * share
        for index, (images, labels) in enumerate(parts):
            last = index + 1 == len(parts)
            with contextlib.nullcontext() if last else accelerator.no_sync(self.module), accelerator.autocast():
                loss, numbers = self._loss(self.module, images, labels)
                # A mean over the whole batch, however processes and accumulation cut it: DDP averages over processes.
                weight = len(labels) * accelerator.num_processes / (self.part * plan.accumulate)
                self.sums.add(loss, numbers, len(labels))
                accelerator.backward(loss * weight)
        if plan.clip is not None:
            accelerator.clip_grad_norm_(list(self.parameters.values()), plan.clip)
        before = [scale.detach() / 2 for scale in self.scales]
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            # A scale must stay above 0; one step may halve it at most.
            for scale, least in zip(self.scales, before, strict=True):
                scale.clamp_(min=least)
        if self.average is not None:
            self.average.update()

    @torch.no_grad()
    def _agree(self) -> None:
        """Give all processes what the main one has beside its parameters: each has BatchNorm statistics of its own part
        of the last step. (The next step would begin with this, too.)"""
        if self.accelerator.num_processes == 1:
            return
        from accelerate.utils import broadcast

        for tensor in (*self.plain.buffers(), *(self.average.tensors.values() if self.average is not None else ())):
            tensor.copy_(broadcast(tensor.contiguous()))

    def _draw(self) -> None:
        """Draw what a step has once, alike for all its parts and processes."""
        generator = torch.Generator().manual_seed(stream(self.plan.seed, self.epoch, self.step))
        for module in self.plain.modules():
            if isinstance(module, RandomQuantizer):
                module.draw(generator)

    def _loss(self, module: nn.Module, images: Any, labels: Tensor) -> tuple[Tensor, Numbers]:
        if not self.plan.compile:
            return self._plain_loss(module, images, labels)
        from torch._dynamo.exc import TorchDynamoException  # torch's compiler takes seconds to import

        try:
            return self._plain_loss(module, images, labels)
        except TorchDynamoException as reason:
            said = next((line for line in str(reason).splitlines() if line.strip()), type(reason).__name__)
            raise RecipeError(f"torch.compile failed ({said[:200]}). Leave compile out.") from reason

    def _plain_loss(self, module: nn.Module, images: Any, labels: Tensor) -> tuple[Tensor, Numbers]:
        if self.takes is not None and isinstance(images, Tensor) and images.dtype != self.takes:
            raise _other_type(images, self.takes)
        try:
            return self.plan.objective.loss(module, images, labels)
        except RuntimeError as reason:
            # A network of one's own may convert its images, so that only what it made of them tells.
            weights = {p.dtype for p in self.student.parameters()}
            if not (isinstance(images, Tensor) and images.dtype not in weights and _OTHER_TYPE.search(str(reason))):
                raise
            raise _other_type(images, next(iter(weights))) from reason
        except ValueError as reason:
            if "more than 1 value per channel" not in str(reason):
                raise
            raise RecipeError(
                f"BatchNorm has no statistics of {len(labels)} image(s), which is what batch={self.plan.batch} and "
                f"accumulate={self.plan.accumulate} give to one of {self.accelerator.num_processes} process(es). Use a "
                "greater batch or a smaller accumulate."
            ) from reason

    def _report(self) -> None:
        loss, numbers, _ = self.sums.means()
        if not math.isfinite(loss):
            raise self._diverged(f"The loss is {loss}")
        rate = self.optimizer.param_groups[0]["lr"]
        self.tell(StepDone(self.epoch, self.step, self.steps, self.plan.last_epoch, loss, numbers, rate))

    def _diverged(self, what: str) -> RecipeError:
        return RecipeError(
            f"{what} at epoch {self.epoch + 1}, step {self.step}: training has diverged. Lower the learning rate (and "
            "scale_rate), clip the gradient (clip: 1.0), warm up longer, or use bf16, not fp16. Nothing was saved "
            "since the last checkpoint."
        )

    def _check_weights(self) -> None:
        trained = [p for p in self.parameters.values() if p.requires_grad]
        statistics = [b for n, b in self.student.named_buffers() if n.endswith(("running_mean", "running_var"))]
        if not all(bool(tensor.isfinite().all()) for tensor in (*trained, *statistics)):
            raise self._diverged("Weights or statistics of BatchNorm are no longer finite")

    def _validate(self) -> dict[str, float]:
        plan, split = self.plan, self.plan.validation_split
        if split is None or self.data.count(split) == 0:
            return {}
        self.plain.eval()
        sums = Sums(self.accelerator)
        with self.average.shown() if self.average is not None else contextlib.nullcontext(), torch.no_grad():
            for images, labels in self._batches(split, train=False):
                if len(labels):
                    with self.accelerator.autocast():
                        loss, numbers = plan.objective.loss(self.plain, images, labels)
                    sums.add(loss, numbers, len(labels))
        loss, numbers, _ = sums.means()
        if not math.isfinite(loss):
            raise self._diverged(f"The validation loss is {loss}")
        return {"loss": loss, **numbers}

    def _batches(self, split: str, *, train: bool) -> Iterator[tuple[Any, Tensor]]:
        plan, accelerator = self.plan, self.accelerator
        size = self.part if train else max(plan.batch // plan.accumulate, accelerator.num_processes)
        batches = self.data.batches(
            split,
            size,
            seed=plan.seed,
            epoch=self.epoch,
            augment=train and plan.augment,
            shuffle=train,
            drop_last=train,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            start=self.step * plan.accumulate if train else 0,
            device=accelerator.device,
        )
        if not train and plan.validation_images is not None:
            batches = self._first(batches, plan.validation_images, size)
        for images, labels in batches:
            images = tree_map(lambda x: x.to(accelerator.device), images)  # a batch may be of several tensors
            if isinstance(images, Tensor) and images.dim() == 4:
                images = images.contiguous(memory_format=self.layout)
            yield images, labels.to(accelerator.device)

    def _first(self, batches: Iterator[tuple[Any, Tensor]], count: int, size: int) -> Iterator[tuple[Any, Tensor]]:
        """This process's share of the first ``count`` images, where all processes together get ``size`` a batch."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        for start, (images, labels) in zip(range(0, count, size), batches, strict=False):
            mine = len(range(rank, min(size, count - start), world))
            yield tree_map(lambda x, mine=mine: x[:mine], images), labels[:mine]

    def _save(self, folder: Folder) -> None:
        folder.save(self.checkpoint())
        self.tell(Saved(folder.checkpoint))


def _is_captured(network: nn.Module) -> TypeGuard[fx.GraphModule]:
    return isinstance(network, fx.GraphModule) and isinstance(network.meta.get("spikezip"), graph_network.Info)


#: What torch says of operands of two types.
_OTHER_TYPE = re.compile("same d?type|type .* should be the same|expected scalar type")


def _other_type(images: Tensor, taken: torch.dtype) -> InputError:
    return InputError(f"The images are {images.dtype}; this network takes {taken}. Convert them with images.to(...).")


def _laid_out(network: nn.Module, layout: torch.memory_format) -> nn.Module:
    """The network with its images' weights in a memory layout, in place."""
    for parameter in network.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=layout)
    return network


def _check_given(data: Data, plan: Plan) -> None:
    if not isinstance(plan, Plan):
        raise RecipeError(f"The plan is a {type(plan).__name__}; give a Plan, for example Plan(QAT(), epochs=10).")
    if not (hasattr(data, "count") and hasattr(data, "batches")):
        raise InputError(
            f"The data is a {type(data).__name__}, which cannot be asked for the batches of an epoch. Give "
            "TensorBatches(images, labels), DatasetBatches(dataset) (of a DataLoader its .dataset), what open_data() "
            "of spikezip.data returns, or an object with count() and batches() (see spikezip.train.Data)."
        )
    if torch.is_inference_mode_enabled():
        raise StageError("torch.inference_mode() makes no gradients, which training needs. Train outside of it.")


def _check_network(network: nn.Module) -> None:
    if not isinstance(network, nn.Module) or (
        _is_captured(network) and graph_network.info(network).stage is graph_network.Stage.SNN
    ):
        raise StageError(
            f"Only an ANN or a QANN is trained; this is {type(network).__name__}. Fine-tune before spike()."
        )
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if is_lazy(tensor):
            raise StageError(
                f"The weight {name!r} is uninitialized: the network is lazy and has seen no input. Call it once on a "
                "batch before."
            )
        if not graph_network.is_sound(tensor):
            raise StageError(
                f"The weight {name!r} has NaN or infinite values, from which nothing is learned. Load sound weights "
                "before training."
            )
    if _is_captured(network) and graph_network.note(network, "weight_bits"):
        raise StageError("Integer weights are not trained. Fine-tune the QANN, and call to_integer() after.")
    scales = {id(module.scale) for module in network.modules() if isinstance(module, Quantizer)}
    weights = [p for p in network.parameters() if id(p) not in scales]
    if not any(p.requires_grad for p in weights or network.parameters()):
        raise StageError(
            f"This {type(network).__name__} has no weight to train: all are frozen (requires_grad=False), as they may "
            "have been when it was captured. Call network.requires_grad_(True), or freeze some of them only."
        )
    with contextlib.suppress(ValueError):  # a forward that Python cannot see into
        forward = inspect.signature(network.forward)
        try:
            forward.bind(None)
        except TypeError as reason:
            raise StageError(
                f"Training calls a network on one batch of images; this {type(network).__name__} has "
                f"forward{forward}. Give a network with one input, or wrap it in a module that has the others."
            ) from reason
    for name, module in network.named_modules():
        if isinstance(module, Quantizer) and not bool(module.calibrated):
            raise StageError(
                f"The scale of {name!r} is not calibrated; training from {module.scale.item():g} rarely works. "
                "Call quantize() with calibration data, or calibrate()."
            )


def _accelerator(precision: Precision, *, unused_parameters: bool) -> Accelerator:
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState

    # A second training in one process may use another precision; accelerate would refuse. Processes stay as they are.
    AcceleratorState._reset_state(reset_partial_state=False)
    try:
        processes = DistributedDataParallelKwargs(find_unused_parameters=unused_parameters)
        accelerator = Accelerator(mixed_precision=precision.value, kwargs_handlers=[processes])
    except ValueError as reason:
        raise RecipeError(f"precision {precision.value} cannot be used here: {reason} Use 'no' or 'bf16'.") from reason
    if precision is Precision.FP16 and accelerator.device.type == "cpu":  # accelerate would take float32 in silence
        raise RecipeError("precision fp16 cannot be used on a CPU. Use 'no' or 'bf16'.")
    if accelerator.num_processes > 1:
        _pause_at_exit()
    return accelerator


@functools.cache
def _pause_at_exit() -> None:
    """Let the threads of other processes' messages drop their last tensor before Python ends, which needs Python: one
    that comes later aborts a process that is done (seen with gloo and torch 2.13, in one run of fifteen)."""
    atexit.register(time.sleep, 0.1)


def _silence(event: Event) -> None:
    pass
