"""Training: the loop, the losses, and paths-ensemble training (PET)."""

from spikezip.train.average import soup
from spikezip.train.batches import Data, DatasetBatches, TensorBatches
from spikezip.train.ensemble import Folded, InTurn, PathsBatchNorm, PathsQuantizer, ensemble
from spikezip.train.first_steps import fit_first_steps
from spikezip.train.loop import Training, finetune, train
from spikezip.train.loss import CosineLabels, CrossEntropy, Distil, HardLabels, MainLabels, PETLoss, TeacherLabels
from spikezip.train.objective import PET, QAT, Objective
from spikezip.train.paths import Capped, Main, Path, PathScale, PathStatistics, Rescaled, paths_for
from spikezip.train.plan import SGD, AdamW, Cooldown, Plan, Precision
from spikezip.train.progress import EpochDone, Event, Lines, Listener, ProgressBar, Saved, StepDone, TensorBoard
from spikezip.train.speq import SPEQ, RandomQuantizer, random_precision
from spikezip.train.trajectory import Activity, BiasShares, Penalty, Tracker, Trajectory, unroll

__all__ = [
    "PET",
    "QAT",
    "SGD",
    "SPEQ",
    "Activity",
    "AdamW",
    "BiasShares",
    "Capped",
    "Cooldown",
    "CosineLabels",
    "CrossEntropy",
    "Data",
    "DatasetBatches",
    "Distil",
    "EpochDone",
    "Event",
    "Folded",
    "HardLabels",
    "InTurn",
    "Lines",
    "Listener",
    "Main",
    "MainLabels",
    "Objective",
    "PETLoss",
    "Path",
    "PathScale",
    "PathStatistics",
    "PathsBatchNorm",
    "PathsQuantizer",
    "Penalty",
    "Plan",
    "Precision",
    "ProgressBar",
    "RandomQuantizer",
    "Rescaled",
    "Saved",
    "StepDone",
    "TeacherLabels",
    "TensorBatches",
    "TensorBoard",
    "Tracker",
    "Training",
    "Trajectory",
    "ensemble",
    "finetune",
    "fit_first_steps",
    "paths_for",
    "random_precision",
    "soup",
    "train",
    "unroll",
]
