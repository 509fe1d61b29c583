"""Training recipes: YAML files that say all of a training, checked before anything runs."""

from __future__ import annotations

import difflib
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from torch import Tensor, fx, nn

from spikezip.errors import RecipeError, SpikezipError
from spikezip.levels import Levels
from spikezip.morph.choices import Activation, BatchNorm, Pooling, Residual
from spikezip.quantize import quantize
from spikezip.spike.encoding import Constant, parse_encoding
from spikezip.train.checks import GREATEST_CODE, GREATEST_COUNT
from spikezip.train.ensemble import Folded, InTurn
from spikezip.train.first_steps import fit_first_steps
from spikezip.train.loss import CosineLabels, CrossEntropy, Distil, HardLabels, MainLabels, PETLoss, TeacherLabels
from spikezip.train.objective import PET, QAT
from spikezip.train.paths import Capped, Main, PathScale, PathStatistics, Rescaled, paths_for
from spikezip.train.paths import Path as SubPath
from spikezip.train.plan import SGD, AdamW, Cooldown, Plan, Precision, check_splits
from spikezip.train.speq import SPEQ
from spikezip.train.trajectory import Penalty, Trajectory

Count = Annotated[int, Field(ge=1, le=GREATEST_COUNT)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Stage(Enum):
    """What is trained: the ANN; the QANN; it and its sub-paths; the SNN's first steps; the QANN as its own teacher."""

    ANN = "ann"
    QAT = "qat"
    PET = "pet"
    TRAJECTORY = "trajectory"
    SPEQ = "speq"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_number_is_true(cls, given: Any, info: ValidationInfo) -> Any:
        kind = cls.model_fields[info.field_name or ""].annotation
        if kind not in (bool, Precision) and any(
            isinstance(g, bool) for g in (given if isinstance(given, list) else [given])
        ):
            raise ValueError("true and false mean nothing here")  # Python would count them as 1 and 0
        return given


class LevelsPart(_Part):
    """Exact levels: ``{lowest: 0, highest: 7}``."""

    lowest: Annotated[int, Field(ge=-GREATEST_CODE, le=0)]
    highest: Annotated[int, Field(ge=0, le=GREATEST_CODE)]


def _kind_of_levels(value: Any) -> str:
    return "Range" if isinstance(value, dict | LevelsPart) else "Count"


def _listed(given: Any) -> Any:
    return [given] if isinstance(given, str) else given


# Told apart by form, so that an error speaks of the form that was meant.
LevelsField = Annotated[
    Annotated[int, Field(ge=2, le=GREATEST_CODE + 1), Tag("Count")] | Annotated[LevelsPart, Tag("Range")],
    Discriminator(_kind_of_levels),
]


class PathPart(_Part):
    """A sub-path: ``{capped: 2}`` or ``{rescaled: 4}`` or ``{rescaled: 4, release: 8}``."""

    capped: Count | None = None
    rescaled: Count | None = None
    release: Count | None = None

    @model_validator(mode="after")
    def _one(self) -> PathPart:
        if (self.capped is None) == (self.rescaled is None) or (self.release is not None and self.rescaled is None):
            raise ValueError("give one of 'capped: N' and 'rescaled: N' ('release' goes with rescaled)")
        return self

    def path(self) -> SubPath:
        """The path as training takes it."""
        return Capped(self.capped) if self.capped is not None else Rescaled(self.rescaled or 1, self.release)


class DistilPart(_Part):
    """Learning from the ANN's logits and features (see :class:`Distil`)."""

    weight: Weight = 1.0
    temperature: Rate = 1.0
    features: Weight = 0.0
    mixed: bool = False


class TeacherPart(_Part):
    """Another network to learn from: ``{model: spikezip:resnet56, weights: FILE}``."""

    model: str
    weights: str | None = None


class SPEQPart(_Part):
    """The teacher of random precision (see :class:`SPEQ`)."""

    finer: Annotated[tuple[Annotated[int, Field(ge=1, le=GREATEST_CODE)], ...], Field(min_length=1)] = (1, 2, 4, 8)
    weight: Rate = 1.0
    divergence: Literal["cosine", "kl"] = "cosine"
    temperature: Rate = 1.0

    @model_validator(mode="after")
    def _finer(self) -> SPEQPart:
        if max(self.finer) == 1:
            raise ValueError("give a precision finer than 1, or the teacher is always the student")
        return self


class LossPart(_Part):
    """The loss (see :class:`PETLoss`; an ANN or QAT takes ``smoothing`` and ``distil`` alone)."""

    alpha: Weight = 1.0
    beta: Weight = 0.0
    sub_labels: Literal["hard", "main", "teacher"] = "hard"
    temperature: Rate = 1.0
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    distil: DistilPart | None = None


class SGDPart(_Part):
    """See :class:`SGD`."""

    rate: Rate = 0.01
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Weight = 5e-4
    scale_rate: Weight = 0.1
    nesterov: bool = False

    @model_validator(mode="after")
    def _has_momentum(self) -> SGDPart:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0, such as 0.9")
        return self


class AdamWPart(_Part):
    """See :class:`AdamW`."""

    rate: Rate = 1e-3
    weight_decay: Weight = 1e-2
    scale_rate: Weight = 1.0


class OptimizerPart(_Part):
    """``{sgd: {rate: 0.02}}`` or ``{adamw: {rate: 0.001}}``."""

    sgd: SGDPart | None = None
    adamw: AdamWPart | None = None

    @model_validator(mode="after")
    def _one(self) -> OptimizerPart:
        if (self.sgd is None) == (self.adamw is None):
            raise ValueError("give one of 'sgd: {...}' and 'adamw: {...}'")
        return self


class CooldownPart(_Part):
    """An early end (see :class:`Cooldown`)."""

    after: Count
    epochs: Count = 1


class MorphPart(_Part):
    """Choices of :class:`spikezip.morph.Morph`."""

    pooling: Pooling = Pooling.KEEP
    activation: Activation = Activation.KEEP
    residual: Residual = Residual.VANILLA
    batch_norm: BatchNorm = BatchNorm.FOLDED


class PenaltyPart(_Part):
    """What a trajectory's loss charges for (see :class:`Penalty`)."""

    spikes: Weight = 0.0
    settling: Weight = 0.0


class Recipe(_Part):
    """All of a training. What :class:`Plan` and the parts explain has the same name here.

    Attributes:
        name: of the run.
        stage: ``ann``, ``qat``, ``pet``, ``speq`` or ``trajectory``.
        model: ``spikezip:NAME``, ``timm:NAME``, ``torchvision:NAME`` or ``path/to/file.py:function``.
        weights: safetensors file the model starts from, or ``pretrained``; only ann makes much sense without. In stage
            ann a library's model may have those for other classes: its classifier is then a new one.
        data: ``digits``, ``cifar10``, ``cifar100``, a folder or an ``.npz``.
        mean: what pixels in ``[0, 1]`` have subtracted, per channel, ``[0.485, 0.456, 0.406]`` or ``[0]`` for all; if
            not given, what the model's library says, else what is usual for the data.
        std: what they are then divided by.
        morph: how the network is made fit for spikes (see :class:`spikezip.morph.Morph`).
        levels: a count (8 is 0..7, and -4..3 where values may be negative), or ``{lowest, highest}``.
        calibration: images that the scales are found from.
        refit: begin with weights fitted to the ANN on those images: for the steps that count, in a trajectory whose
            input is complete by then (see :func:`fit_first_steps`), else once settled (see
            :class:`~spikezip.quantize.refit.Refit`).
        encoding: ``pulse`` or ``even:N``, with which the SNN will run.
        paths: the sub-paths; by default those that follow from the encoding.
        scale: ``shared``, or ``free`` for scales of each sub-path's own while training lasts.
        statistics: of each sub-path where ``morph: {batch_norm: live}``: ``private``, or ``shared`` with all others.
        execution: ``folded``, ``in-turn`` or ``recompute`` (see :class:`InTurn`).
        steps: the loss's weight at each time step, ``[0, 1]`` for the answer at t = 2 (trajectory alone).
        bias_shares: ``encoding``, or ``learned``: when biases arrive is trained too (trajectory alone).
        initial_code: where tracers start, 0 where not given (trajectory alone; see :func:`spikezip.spike`).
        settled: the weight of the QANN's own answer beside them.
        penalty: ``{spikes: 1e-6, settling: 1e-6}``, what spikes and the way to equilibrium cost (trajectory alone).
        speq: the teacher of random precision, ``{finer: [1, 2, 4, 8]}`` (speq alone).
        start: trained weights of this very QANN (``network.safetensors`` of a run; where BatchNorm is live,
            ``live.safetensors``) to go on from, with its learned bias shares if it has some; of several such files,
            as a list, the mean (see :func:`soup`).
        start_scale: what the step sizes of ``start`` are multiplied by, where it was trained with another number of
            levels: with fewer now, steps are to be larger (1.4 for four codes in the place of six).
        compile: train with torch.compile: longer to start, then faster (see :class:`Plan`).
        cooldown: ``{after: 12, epochs: 2}``, to end a long training early; it may be added to one that is under way.
        loss: see :class:`PETLoss` and :class:`CrossEntropy`. The teacher of ``distil`` and ``sub_labels: teacher`` is
            the model with its ``weights``, where ``teacher`` names no other.
        teacher: another network whose logits are learned, ``{model: spikezip:resnet56, weights: FILE}``, for the same
            classes; it sees the images that the model sees, normalised as for the model.
        out: folder to write to (the command line's ``--out`` goes before).
        tensorboard: write scalars to ``out``.
    """

    name: str
    stage: Stage
    model: str
    weights: str | None = None
    data: str
    mean: Annotated[list[Annotated[float, Field(allow_inf_nan=False)]], Field(min_length=1)] | None = None
    std: Annotated[list[Rate], Field(min_length=1)] | None = None
    morph: MorphPart = MorphPart()
    levels: LevelsField = 8
    calibration: Count = 512
    refit: bool = False
    encoding: str = "pulse"
    paths: list[PathPart] | None = None
    scale: PathScale = PathScale.SHARED
    statistics: PathStatistics = PathStatistics.PRIVATE
    execution: Literal["folded", "in-turn", "recompute"] = "folded"
    steps: list[Weight] | None = None
    bias_shares: Literal["encoding", "learned"] = "encoding"
    initial_code: Annotated[int, Field(ge=0)] = 0
    settled: Weight = 0.0
    penalty: PenaltyPart = PenaltyPart()
    speq: SPEQPart = SPEQPart()
    start: Annotated[list[str], Field(min_length=1), BeforeValidator(_listed)] | None = None
    start_scale: Rate = 1.0
    loss: LossPart = LossPart()
    teacher: TeacherPart | None = None
    optimizer: OptimizerPart = OptimizerPart(sgd=SGDPart())
    epochs: Count = 1
    batch: Count = 128
    accumulate: Count = 1
    warmup: Weight = 0.0
    final_rate: Annotated[float, Field(ge=0, le=1)] = 0.0
    cooldown: CooldownPart | None = None
    clip: Rate | None = None
    precision: Precision = Precision.NO
    compile: bool = False
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    augment: bool = True
    train_split: str = "train"
    validation_split: str | None = "val"
    train_images: Count | None = None
    validation_images: Count | None = None
    checkpoint_every: Count | None = None
    log_every: Count = 10
    out: str | None = None
    tensorboard: bool = False

    @field_validator("precision", mode="before")
    @classmethod
    def _no_is_a_word(cls, given: Any) -> Any:
        return "no" if given is False else given  # YAML reads a bare no as false

    @model_validator(mode="after")
    def _fits_its_stage(self) -> Recipe:
        of_pet, of_trajectory, of_speq = (
            {"paths", "scale", "statistics", "execution"},
            {"steps", "settled", "bias_shares", "penalty", "initial_code"},
            {"speq"},
        )
        of_qann = {"levels", "calibration", "refit", "encoding", "morph", "start", "start_scale"}
        unused = {
            Stage.ANN: of_qann | of_pet | of_trajectory | of_speq,
            Stage.QAT: of_pet | of_trajectory | of_speq,
            Stage.PET: of_trajectory | of_speq,
            Stage.SPEQ: of_pet | of_trajectory,
            Stage.TRAJECTORY: of_pet | of_speq,
        }[self.stage]
        given = sorted(unused & self.model_fields_set)
        if given:
            raise ValueError(f"stage {self.stage.value} has no use for {', '.join(given)}; remove them or change stage")
        if self.stage is Stage.TRAJECTORY and not self.steps:
            raise ValueError("stage trajectory needs 'steps': the loss's weight at each time step, such as [0, 1]")
        if self.stage is Stage.TRAJECTORY and not any((*(self.steps or ()), self.settled)):
            raise ValueError("steps and settled are all 0: nothing would be trained. Give the last step a weight")
        if self.stage is Stage.TRAJECTORY and isinstance(parse_encoding(self.encoding), Constant):
            raise ValueError(
                "encoding: constant spreads the input over all steps of a run, which may be more than are trained; use "
                f"even:{len(self.steps or ())}, which ends with them"
            )
        live, shared = self.morph.batch_norm is BatchNorm.LIVE, self.statistics is PathStatistics.SHARED
        if live and self.stage is Stage.SPEQ:
            raise ValueError("stage speq cannot keep BatchNorm live; remove morph.batch_norm")
        if live and self.execution == "recompute":
            raise ValueError("a live BatchNorm is computed once; use execution: folded or in-turn")
        if ("network" if live else "live") + ".safetensors" in (Path(file).name for file in self.start or ()):
            folded, other = ("folded", "live.safetensors") if live else ("live", "network.safetensors")
            raise ValueError(f"start: BatchNorm is {folded} in these weights; give the {other} beside them")
        if shared and not live:
            raise ValueError("statistics: shared are those of a live BatchNorm; add morph: {batch_norm: live}")
        if shared and self.execution != "folded":
            raise ValueError("statistics: shared are those of one batch; use execution: folded")
        in_loss = sorted({"alpha", "beta", "sub_labels", "temperature"} & self.loss.model_fields_set)
        if in_loss and self.stage is not Stage.PET:
            raise ValueError(f"stage {self.stage.value} has no use for loss.{in_loss[0]}; remove it or use stage: pet")
        if "temperature" in in_loss and self.loss.sub_labels == "hard":
            raise ValueError("loss.sub_labels: hard has no use for loss.temperature; remove it or use main or teacher")
        if self.stage is Stage.SPEQ and self.loss.distil is not None:
            raise ValueError("stage speq has no use for loss.distil: the network is its own teacher; remove it")
        if self.learns_features:
            if self.stage is Stage.ANN:
                raise ValueError("stage ann has no use for loss.distil.features: an ANN has no neurons; remove it")
            if self.execution != "folded":
                raise ValueError("loss.distil.features compares paths that share a batch; use execution: folded")
        if self.teacher is not None and not self.needs_teacher:
            raise ValueError("teacher: is given, and nothing is learned from it; add loss: {distil: {}} or remove it")
        if self.teacher is not None and self.learns_features:
            raise ValueError("loss.distil.features are those of the model itself; remove them, or teacher:")
        check_splits(self.train_split, self.validation_split)
        self._sub_paths()
        if self.start is None and "start_scale" in self.model_fields_set:
            raise ValueError("start_scale: multiplies the step sizes of start:, and there is none; add it")
        if self.refit and self.start is not None:
            raise ValueError("start: gives the weights to begin with, and refit: would fit others; remove one")
        if self.initial_code > self._widest.highest:
            raise ValueError(
                f"initial_code: {self.initial_code} is above the greatest code, {self._widest.highest}; lower it"
            )
        parse_encoding(self.encoding)
        return self

    @property
    def needs_teacher(self) -> bool:
        """Whether :meth:`plan` must be given a teacher: the ANN, or what :attr:`teacher` names."""
        return self.loss.distil is not None or (self.stage is Stage.PET and self.loss.sub_labels == "teacher")

    @property
    def learns_features(self) -> bool:
        """Whether that teacher must be the morphed ANN that was quantized."""
        return self.loss.distil is not None and self.loss.distil.features > 0

    def quantizer_levels(self) -> int | Levels:
        """The levels as ``quantize`` takes them."""
        return self.levels if isinstance(self.levels, int) else Levels(self.levels.lowest, self.levels.highest)

    def quantized(self, ann: fx.GraphModule, original: fx.GraphModule, images: Tensor) -> fx.GraphModule:
        """The QANN that training begins with, but for weights of ``start``.

        Args:
            ann: the network as ``morph`` made it.
            original: what ``morph`` was given.
            images: calibration images ``[N, ...]``.
        """
        levels, encoding = self.quantizer_levels(), parse_encoding(self.encoding)
        steps = self.steps if self.stage is Stage.TRAJECTORY and self.refit else None
        if not steps or any(weight and encoding.share(t, len(steps)) < 1 for t, weight in enumerate(steps, 1)):
            return quantize(ann, levels, images, refit=self.refit, original=original)
        qann = quantize(ann, levels, original=original)
        code = self.initial_code
        fit_first_steps(qann, original, images, steps, encoding, settled=self.settled, initial_code=code)
        return qann

    def plan(self, teacher: nn.Module | None = None) -> Plan:
        """The plan that ``finetune`` takes.

        Args:
            teacher: the ANN, or another network, if :attr:`needs_teacher`.

        Raises:
            RecipeError: values that do not go together.
        """
        loss = self.loss
        distil = Distil(**loss.distil.model_dump()) if loss.distil is not None else None
        if self.stage is Stage.PET:
            sub_labels = {
                "hard": HardLabels(),
                "main": MainLabels(loss.temperature),
                "teacher": TeacherLabels(loss.temperature),
            }[loss.sub_labels]
            execution = {"folded": Folded(), "in-turn": InTurn(), "recompute": InTurn(recompute=True)}[self.execution]
            criterion = PETLoss(loss.alpha, loss.beta, sub_labels, loss.smoothing, distil)
            objective = PET(self._sub_paths(), criterion, execution, teacher, self.scale, self.statistics)
        elif self.stage is Stage.TRAJECTORY:
            criterion = CrossEntropy(loss.smoothing, distil)
            weights = tuple(self.steps or ())
            encoding, learned = parse_encoding(self.encoding), self.bias_shares == "learned"
            penalty = Penalty(self.penalty.spikes, self.penalty.settling)
            objective = Trajectory(
                weights, encoding, self.settled, criterion, teacher, learned, penalty, self.initial_code
            )
        elif self.stage is Stage.SPEQ:
            part = self.speq
            soft = {"cosine": CosineLabels, "kl": TeacherLabels}[part.divergence](part.temperature)
            objective = SPEQ(part.finer, part.weight, soft, loss.smoothing)
        else:
            objective = QAT(CrossEntropy(loss.smoothing, distil), teacher)
        sgd, adamw = self.optimizer.sgd, self.optimizer.adamw
        optimizer = SGD(**sgd.model_dump()) if sgd is not None else AdamW(**(adamw or AdamWPart()).model_dump())
        shared = (
            "epochs",
            "batch",
            "accumulate",
            "warmup",
            "final_rate",
            "clip",
            "precision",
            "compile",
            "ema",
            "seed",
            "augment",
        )
        shared += (
            "train_split",
            "validation_split",
            "train_images",
            "validation_images",
            "checkpoint_every",
            "log_every",
        )
        cooldown = Cooldown(**self.cooldown.model_dump()) if self.cooldown is not None else None
        return Plan(
            objective=objective,
            optimizer=optimizer,
            cooldown=cooldown,
            **{name: getattr(self, name) for name in shared},
        )

    @property
    def _widest(self) -> Levels:
        levels = self.quantizer_levels()
        return levels if isinstance(levels, Levels) else Levels.unsigned(levels)

    def _sub_paths(self) -> tuple[SubPath, ...]:
        widest = self._widest
        if self.paths is not None:
            if len(set(self.paths)) < len(self.paths):
                raise ValueError("paths: the same path is there twice; remove one")
            beyond = [part.capped for part in self.paths if (part.capped or 0) > widest.magnitude]
            if beyond:
                raise ValueError(
                    f"paths: capped: {beyond[0]} is above the greatest code, {widest.magnitude}; remove it"
                )
            main = [part.rescaled for part in self.paths if part.path().reading(widest) == Main().reading(widest)]
            if any(main):
                raise ValueError(f"paths: rescaled: {main[0]} is the main path a second time; remove it")
            return tuple(part.path() for part in self.paths)
        return paths_for(parse_encoding(self.encoding), widest) if self.stage is Stage.PET else ()


#: Where in a recipe which keys are known, for near matches.
_PARTS: dict[tuple[str, ...], type[_Part]] = {
    (): Recipe,
    ("levels",): LevelsPart,
    ("paths",): PathPart,
    ("loss",): LossPart,
    ("loss", "distil"): DistilPart,
    ("teacher",): TeacherPart,
    ("speq",): SPEQPart,
    ("penalty",): PenaltyPart,
    ("optimizer",): OptimizerPart,
    ("optimizer", "sgd"): SGDPart,
    ("optimizer", "adamw"): AdamWPart,
    ("cooldown",): CooldownPart,
    ("morph",): MorphPart,
}


class _OnceLoader(yaml.SafeLoader):
    """Takes no key twice; YAML's own loader keeps the last in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} is there twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_recipe(source: Path | str) -> Recipe:
    """Read and check a recipe.

    Raises:
        RecipeError: the file cannot be read, is not YAML, or a field is unknown, missing or out of range; each such
            field is named with what is allowed there.
    """
    path = Path(source)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as reason:
        told = reason.strerror if isinstance(reason, OSError) else "it is not text"
        raise RecipeError(f"The recipe '{path}' cannot be read: {told}. Check the path.") from reason
    try:
        content = yaml.load(text, _OnceLoader)
    except yaml.YAMLError as reason:
        raise RecipeError(f"The recipe '{path}' is not YAML: {' '.join(str(reason).split())}") from reason
    return check_recipe(content, str(path))


def check_recipe(content: Any, source: str = "recipe") -> Recipe:
    """Check the content of a recipe (as :func:`read_recipe`)."""
    if not isinstance(content, dict):
        raise RecipeError(f"{source}: a recipe is a list of 'key: value' lines; this is {type(content).__name__}.")
    try:
        return Recipe.model_validate(content)
    except ValidationError as reason:
        lines = list(dict.fromkeys(_explain(error) for error in reason.errors(include_url=False)))
        raise RecipeError("\n  ".join([f"{source} has {len(lines)} problem(s):", *lines])) from None
    except SpikezipError as reason:
        raise RecipeError(f"{source}: {reason}") from reason


def _explain(error: Any) -> str:
    # Pydantic puts the names of the forms of levels into locations; the user's keys alone are shown.
    place = [p for p in error["loc"][:-1] if p not in ("Count", "Range")]
    if error["loc"] and (error["type"] == "extra_forbidden" or error["loc"][-1] not in ("Count", "Range")):
        place.append(error["loc"][-1])
    shown = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in place).lstrip(".") or "recipe"
    if error["type"] == "extra_forbidden":
        owner = _PARTS.get(tuple(p for p in place[:-1] if isinstance(p, str)), Recipe)
        near = difflib.get_close_matches(str(place[-1]).lower(), owner.model_fields, n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known keys: {', '.join(owner.model_fields)}."
        return f"{shown}: there is no such key; {hint}"
    if error["type"] == "missing":
        return f"{shown}: is missing."
    message = error["msg"].removeprefix("Value error, ")
    given = "" if isinstance(error["input"], dict) else f" (given: {error['input']!r})"
    return f"{shown}: {message[0].lower()}{message[1:]}{given}."
