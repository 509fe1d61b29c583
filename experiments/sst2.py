"""Sentences: a transformer trained on SST-2, as an SNN without further training, accuracy at each time step.

    python experiments/sst2.py --data FOLDER [--seeds 3] [--epochs 4] [--levels 8 16 32]

The network is torch's own ``nn.TransformerEncoder`` (two layers of 96 channels, four heads, words of the training
sentences), with padding masked; nothing in it knows of spikes. Each seed is a training of its own, by words and labels
alone, chosen by epoch on the validation sentences; then 512 training sentences, without labels, give thresholds and
weights. Accuracy is on the 872 test sentences (GLUE's development set), of which every settled answer is compared with
the QANN's, to the bit. Writes experiments/results/sst2.json; trained networks are kept in runs/sst2.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

import spikezip
from spikezip.data.root import data_root
from spikezip.measure import count
from spikezip.measure.provenance import provenance

RESULT = Path(__file__).parent / "results" / "sst2.json"
KEPT = Path("runs/sst2")
STEPS = (1, 2, 4, 6, 8, 12, 16, 24)
LONGEST = 56  #: words of a sentence
WORDS = 12_000  #: of the vocabulary; 0 pads, 1 is any other word
CALIBRATION = 512
COUNTED = 32
BATCH, RATE = 128, 1e-3


class Sentences(nn.Module):
    """Scores of two classes for sentences of word numbers ``[N, LONGEST]``, padded with 0."""

    def __init__(self, width: int = 96, layers: int = 2):
        super().__init__()
        self.words = nn.Embedding(WORDS, width, padding_idx=0)
        self.places = nn.Parameter(0.02 * torch.randn(LONGEST, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.2, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.drop, self.head = nn.Dropout(0.4), nn.Linear(width, 2)

    def forward(self, ids: Tensor) -> Tensor:
        padding = ids == 0
        h = self.encoder(self.drop(self.words(ids) + self.places[: ids.shape[1]]), src_key_padding_mask=padding)
        kept = (~padding).float().unsqueeze(-1)
        return self.head(self.drop((h * kept).sum(1) / kept.sum(1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with sst2_train.tsv.gz, sst2_dev.tsv.gz, sst2_test.tsv.gz")
    parser.add_argument("--seeds", type=int, default=3, help="trainings")
    parser.add_argument("--epochs", type=int, default=4, help="of each")
    parser.add_argument("--levels", type=int, nargs="*", default=[8, 16, 32], help="of the neurons")
    options = parser.parse_args()
    root = data_root(options.data)
    if root is None or not (root / "sst2_train.tsv.gz").is_file():
        parser.error("give the folder with sst2_train.tsv.gz, sst2_dev.tsv.gz and sst2_test.tsv.gz: --data FOLDER")
    texts = {part: read(root / f"sst2_{part}.tsv.gz") for part in ("train", "dev", "test")}
    counted = Counter(word for sentence, _ in texts["train"] for word in sentence.split())
    number = {word: i for i, (word, _) in enumerate(counted.most_common(WORDS - 2), 2)}
    data = {part: numbered(rows, number) for part, rows in texts.items()}
    rows = json.loads(RESULT.read_text())["rows"] if RESULT.exists() else []
    for seed in range(options.seeds):
        missing = [n for n in options.levels if not any((r["seed"], r["levels"]) == (seed, n) for r in rows)]
        if not missing:
            continue
        network = trained(data, seed, options.epochs)
        for levels in missing:
            row = {"seed": seed, "levels": levels, **measured(network, data, seed, levels)}
            rows.append(row)
            told = {"experiment": "sst2", **provenance(0), "epochs": options.epochs, "rows": rows}
            RESULT.write_text(json.dumps(told, indent=1) + "\n")
            at = ", ".join(f"t={t} {value:.4f}" for t, value in row["at"].items())
            print(f"seed {seed}, {levels} levels: ANN {row['ann']:.4f}, QANN {row['qann']:.4f}, {at}", flush=True)


def read(path: Path) -> list[tuple[str, int]]:
    """Sentences and their labels."""
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [(row["sentence"], int(row["label"])) for row in rows]


def numbered(rows: list[tuple[str, int]], number: dict[str, int]) -> tuple[Tensor, Tensor]:
    """Word numbers ``[N, LONGEST]`` and labels ``[N]``."""
    ids = torch.zeros(len(rows), LONGEST, dtype=torch.long)
    for i, (sentence, _) in enumerate(rows):
        words = [number.get(word, 1) for word in sentence.split()][:LONGEST]
        ids[i, : len(words)] = torch.tensor(words or [1])
    return ids, torch.tensor([label for _, label in rows])


def trained(data: dict[str, tuple[Tensor, Tensor]], seed: int, epochs: int) -> Sentences:
    """A network of this seed, trained, or as it was kept."""
    kept = KEPT / f"ann-{seed}-{epochs}.safetensors"
    torch.manual_seed(seed)
    network = Sentences()
    if kept.exists():
        network.load_state_dict(load_file(kept))
        return network.eval()
    ids, labels = data["train"]
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=0.05)
    steps = epochs * (len(ids) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    best, chosen = -1.0, {}
    for epoch in range(epochs):
        began = time.perf_counter()
        network.train()
        for part in torch.randperm(len(ids))[: len(ids) // BATCH * BATCH].split(BATCH):
            some = ids[part]
            some = some[:, : int((some != 0).sum(1).max())]  # what pads all is masked for all
            loss = F.cross_entropy(network(some), labels[part], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        share = right(network.eval(), *data["dev"])
        told = f"{time.perf_counter() - began:.0f} s"
        print(f"seed {seed}, epoch {epoch + 1}/{epochs}: loss {loss:.3f}, dev {share:.4f} ({told})", flush=True)
        if share > best:
            best, chosen = share, {name: tensor.clone() for name, tensor in network.state_dict().items()}
    kept.parent.mkdir(parents=True, exist_ok=True)
    save_file(chosen, kept)
    network.load_state_dict(chosen)
    return network.eval()


@torch.no_grad()
def right(network: Any, ids: Tensor, labels: Tensor) -> float:
    """Share of sentences that a network is right on."""
    answers = torch.cat([network(some) for some in ids.split(BATCH)])
    return float((answers.argmax(-1) == labels).double().mean())


@torch.no_grad()
def measured(network: Sentences, data: dict[str, tuple[Tensor, Tensor]], seed: int, levels: int) -> dict[str, Any]:
    """The network as an SNN of so many levels."""
    ids, labels = data["test"]
    order = torch.randperm(len(data["train"][0]), generator=torch.Generator().manual_seed(seed))
    real = data["train"][0][order[:CALIBRATION]]
    began = time.process_time()
    snn = spikezip.convert(network, ids[:1], real, levels=levels)
    seconds = time.process_time() - began
    hits: dict[str, int] = {}
    settled, spikes = [], 0.0
    for some, wanted in zip(ids.split(BATCH), labels.split(BATCH), strict=True):
        run = snn.run(some)
        settled.append(run.settled_at)
        spikes += float(run.total_spikes.sum())
        for name, t in [*((str(t), t) for t in STEPS), ("settled", run.steps)]:
            answer = run.logits[min(t, run.steps) - 1]
            hits[name] = hits.get(name, 0) + int((answer.argmax(-1) == wanted).sum())
    steps = torch.cat(settled)
    counts = count(snn, ids, limit=COUNTED)
    return {
        "ann": right(network, ids, labels),
        "qann": right(snn.qann, ids, labels),
        "at": {name: hit / len(ids) for name, hit in hits.items()},
        "equal": spikezip.verify(snn, ids, seed=seed).equal,
        "t_eq": {"mean": float(steps.double().mean()), "max": int(steps.max())},
        "spikes": spikes / len(ids),
        "synops": float(counts.synops[-1]),
        "macs": float(counts.qann("mac")),
        "convert_seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    main()
