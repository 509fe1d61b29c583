"""Detectors of the YOLO family in Darknet's own words: the network, the boxes its answers mean, how good these are."""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

Section = tuple[str, dict[str, str]]

SURE = 0.005  #: least score of a box that is looked at
OVERLAP = 0.45  #: of two boxes of a class, above which the less sure one goes
MOST = 300  #: boxes of an image
RIGHT = 0.5  #: overlap (intersection over union) of a box with a true one


def sections(text: str) -> list[Section]:
    """A Darknet configuration's sections, the network's own first: the kind of each, and what it says."""
    found: list[Section] = []
    for line in text.splitlines():
        line = line.partition("#")[0].strip()
        if line.startswith("["):
            found.append((line.strip("[]"), {}))
        elif line:
            key, _, value = line.partition("=")
            found[-1][1][key.strip()] = value.strip()
    return found


def numbers(text: str) -> list[int]:
    """Whole numbers between commas."""
    return [int(part) for part in text.split(",")]


@dataclass(frozen=True)
class Head:
    """What one of a detector's answers says of boxes.

    Attributes:
        anchors: width and height of its boxes, in parts of the image, ``[A, 2]``.
        spread: how far a box's centre may leave its cell (Darknet's ``scale_x_y``).
    """

    anchors: Tensor
    spread: float

    def boxes(self, answer: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes ``[N, cells, 4]`` (left, top, right, bottom, in parts of the image) and scores ``[N, cells, classes]``
        of ``answer``, ``[N, A * (5 + classes), rows, columns]``."""
        count, (rows, columns) = len(self.anchors), answer.shape[2:]
        values = answer.float().unflatten(1, (count, -1)).permute(0, 1, 3, 4, 2)
        places = torch.stack(torch.meshgrid(torch.arange(columns), torch.arange(rows), indexing="xy"), -1)
        centres = values[..., :2].sigmoid() * self.spread - (self.spread - 1) / 2 + places
        centres = centres / torch.tensor([columns, rows])
        sizes = values[..., 2:4].clamp(max=10).exp() * self.anchors[:, None, None]
        corners = torch.cat([centres - sizes / 2, centres + sizes / 2], -1)
        scores = values[..., 4:5].sigmoid() * values[..., 5:].sigmoid()
        return corners.flatten(1, 3), scores.flatten(1, 3)


class Darknet(nn.Module):
    """A detector from a file of weights that holds its configuration; it returns the answer of each of its heads."""

    def __init__(self, path: Path):
        super().__init__()
        with safe_open(path, framework="pt") as file:
            (_, self.about), *self.layers = sections(file.metadata()["cfg"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        self.size = int(self.about["width"])
        self.m = nn.Module()
        channels, widths = 3, []
        for index, (kind, row) in enumerate(self.layers):
            if kind == "convolutional":
                inputs, channels = channels, int(row["filters"])
                size, norm = int(row["size"]), int(row.get("batch_normalize", 0))
                padding, groups = size // 2 if int(row.get("pad", 0)) else 0, int(row.get("groups", 1))
                layer = nn.Conv2d(inputs, channels, size, int(row["stride"]), padding, groups=groups, bias=not norm)
                self.m.add_module(f"conv{index}", layer)
                if norm:
                    self.m.add_module(f"bn{index}", nn.BatchNorm2d(channels))
            elif kind == "route":
                channels = sum(widths[self._source(index, n)] for n in numbers(row["layers"]))
            widths.append(channels)
        missing = [n for n in self.load_state_dict(state, strict=False).missing_keys if not n.endswith("_tracked")]
        if missing:
            raise ValueError(f"{path} has no {missing[0]}")

    @staticmethod
    def _source(index: int, number: int) -> int:
        return number if number >= 0 else index + number

    def heads(self) -> list[Head]:
        """What each answer says."""
        found = []
        for kind, row in self.layers:
            if kind == "yolo":
                pairs = torch.tensor(numbers(row["anchors"])).float().unflatten(0, (-1, 2)) / self.size
                found.append(Head(pairs[numbers(row["mask"])], float(row.get("scale_x_y", 1))))
        return found

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        values: list[Tensor] = []
        answers = []
        for index, (kind, row) in enumerate(self.layers):
            if kind == "convolutional":
                x = self.m.get_submodule(f"conv{index}")(x)
                if "batch_normalize" in row:
                    x = self.m.get_submodule(f"bn{index}")(x)
                if row["activation"] == "relu":
                    x = F.relu(x)
                elif row["activation"] == "leaky":
                    x = F.leaky_relu(x, 0.1)
                elif row["activation"] != "linear":
                    raise NotImplementedError(row["activation"])
            elif kind == "route":
                x = torch.cat([values[self._source(index, n)] for n in numbers(row["layers"])], 1)
            elif kind == "shortcut":
                x = x + values[self._source(index, int(row["from"]))]
            elif kind == "maxpool":
                x = F.max_pool2d(x, int(row["size"]), int(row["stride"]), int(row["size"]) // 2)
            elif kind == "upsample":
                x = F.interpolate(x, scale_factor=int(row["stride"]))
            elif kind == "yolo":
                answers.append(x)
            elif kind != "dropout":
                raise NotImplementedError(kind)
            values.append(x)
        return tuple(answers)


# -- boxes ------------------------------------------------------------------------------------------------------------


def overlaps(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union of boxes ``[N, 4]`` and ``[M, 4]``, ``[N, M]``."""
    sides = torch.minimum(one[:, None, 2:], other[:, 2:]) - torch.maximum(one[:, None, :2], other[:, :2])
    common = sides.clamp(min=0).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (one, other)]
    return common / (areas[0][:, None] + areas[1] - common).clamp(min=1e-12)


def detected(heads: Sequence[Head], answers: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """For each image the boxes, their scores and classes; the surest first, of those that overlap the surest alone."""
    found = [head.boxes(answer) for head, answer in zip(heads, answers, strict=True)]
    boxes, scores = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
    for places, sure in zip(boxes, scores, strict=True):
        cells, kinds = (sure > SURE).nonzero(as_tuple=True)
        best = sure[cells, kinds].argsort(descending=True)[: 4 * MOST]
        cells, kinds = cells[best], kinds[best]
        corners = places[cells]
        hidden = (overlaps(corners, corners) > OVERLAP) & (kinds[:, None] == kinds)
        keep = torch.ones(len(best), dtype=torch.bool)
        for i in range(len(best)):
            if keep[i]:
                keep[i + 1 :] &= ~hidden[i, i + 1 :]
        which = keep.nonzero().flatten()[:MOST]
        yield corners[which], sure[cells, kinds][which], kinds[which]


def mean_precision(found: Sequence[tuple[Tensor, Tensor, Tensor]], truth: Sequence[Tensor]) -> float:
    """mAP at an overlap of 0.5: the mean over classes of the precision at 101 recalls, as COCO reckons it.

    ``truth`` has a row ``class, left, top, right, bottom`` for each true box of an image.
    """
    by_class: dict[int, list[tuple[float, bool]]] = defaultdict(list)
    wanted: dict[int, int] = defaultdict(int)
    for (boxes, scores, kinds), rows in zip(found, truth, strict=True):
        for kind in rows[:, 0].int().tolist():
            wanted[kind] += 1
        for kind in kinds.unique().tolist():
            mine, theirs = kinds == kind, rows[rows[:, 0] == kind][:, 1:]
            shared, free = overlaps(boxes[mine], theirs), torch.ones(len(theirs), dtype=torch.bool)
            for score, each in zip(scores[mine].tolist(), shared, strict=True):
                each = torch.where(free, each, 0.0)
                right = bool(len(theirs)) and float(each.max()) >= RIGHT
                if right:
                    free[each.argmax()] = False
                by_class[kind].append((score, right))
    recalls = np.linspace(0, 1, 101)
    precisions = []
    for kind, count in wanted.items():
        rows = sorted(by_class[kind], key=lambda row: -row[0])
        hits = np.cumsum([right for _, right in rows]) if rows else np.zeros(0)
        precision = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]
        reached = np.searchsorted(hits / count, recalls)
        precisions.append(np.mean([precision[i] if i < len(precision) else 0.0 for i in reached]))
    return float(np.mean(precisions))


# -- data -------------------------------------------------------------------------------------------------------------


def coco128(root: Path, size: int) -> tuple[Tensor, list[Tensor]]:
    """The first 128 images of COCO train2017, ``[128, 3, size, size]`` in 0..1, and the true boxes of each."""
    with np.load(root / "coco128_images.npz", allow_pickle=False) as file:
        raw, ends, names = file["jpeg"].tobytes(), file["offsets"], [str(name) for name in file["names"]]
    labels = json.loads((root / "coco128_boxes.json").read_text())["boxes"]
    images, truth = [], []
    for name, first, last in zip(names, ends[:-1], ends[1:], strict=True):
        picture = Image.open(io.BytesIO(raw[first:last])).convert("RGB").resize((size, size))
        images.append(torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1).float() / 255)
        rows = torch.tensor(labels[name], dtype=torch.float32).reshape(-1, 5)
        truth.append(torch.cat([rows[:, :1], rows[:, 1:3] - rows[:, 3:] / 2, rows[:, 1:3] + rows[:, 3:] / 2], 1))
    return torch.stack(images), truth
