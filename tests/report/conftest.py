"""Records to render: a small ST-BIF network is really run, so that the series hang together as a run's do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

LAYERS, WIDTH, IMAGES, HIGHEST = 12, 64, 200, 7


def _names(count: int) -> list[str]:
    places = [
        f"layer{stage}.{block}.{part}" for stage in (1, 2, 3) for block in range(3) for part in ("relu", "relu_1")
    ]
    return ["relu", *places][:count]


def build_record(name: str = "resnet20", *, steps: int = 24, seed: int = 0, layers: int = LAYERS) -> dict[str, Any]:
    """A whole record of a random chain of ST-BIF layers, in the schema of ``record.json``."""
    rng = np.random.default_rng(seed)
    names, theta = _names(layers), rng.uniform(0.05, 0.4, layers)
    weights = [rng.normal(0, 1.5 / np.sqrt(WIDTH), (WIDTH, WIDTH)) for _ in names]
    image = rng.normal(0, 1, (IMAGES, WIDTH))
    head = rng.normal(0, 1, (WIDTH, 10))

    def code(drive: np.ndarray, scale: float) -> np.ndarray:
        return np.clip(np.floor(drive / scale + 0.5), 0, HIGHEST)

    target, signal = [], image
    for w, scale in zip(weights, theta):
        target.append(code(signal @ w, scale))
        signal = target[-1] * scale
    truth = (signal @ head).argmax(1)
    labels = np.where(rng.random(IMAGES) < 0.1, (truth + 1) % 10, truth)
    tracers = [np.zeros((IMAGES, WIDTH)) for _ in names]
    spikes: list[list[np.ndarray]] = [[] for _ in names]
    drives: list[list[np.ndarray]] = [[] for _ in names]
    history: list[list[np.ndarray]] = [[] for _ in names]
    predicted = []
    for _ in range(steps):
        signal = image
        for i, (w, scale) in enumerate(zip(weights, theta)):
            drive = signal @ w
            o = np.clip(code(drive, scale) - tracers[i], -1, 1)
            tracers[i] = tracers[i] + o
            signal = tracers[i] * scale
            for store, value in ((spikes, o), (drives, drive), (history, tracers[i])):
                store[i].append(value)
        predicted.append((signal @ head).argmax(1))
    fired = np.array([[np.abs(o).sum(1) for o in layer] for layer in spikes]).sum(0)  # [T, images]
    t_eq = np.array([max(np.flatnonzero(fired[:, b]) + 1, default=0) for b in range(IMAGES)])
    settled = bool((t_eq < steps).all())  # a silent step has been seen
    histogram = {str(t): int((t_eq == t).sum()) for t in sorted(set(t_eq[t_eq < steps].tolist()))}
    synops = np.array([[np.abs(o).sum(1).mean() * WIDTH for o in layer] for layer in spikes]).cumsum(1)
    macs = WIDTH * WIDTH * layers
    wrong = [int((h[-1] != q).sum()) for h, q in zip(history, target)]
    total = synops.sum(0)

    def layer(i: int) -> dict[str, Any]:
        o, h = np.array(spikes[i]), np.array(history[i])
        counts = np.array([(h[-1] == c).mean() for c in range(HIGHEST + 1)])
        return {
            "name": names[i],
            "neurons": WIDTH,
            "lowest": 0,
            "highest": HIGHEST,
            "scale": float(theta[i]),
            "spikes": np.abs(o).sum(2).mean(1).tolist(),
            "negative": (o < 0).sum(2).mean(1).tolist(),
            "rate": np.abs(o).mean((1, 2)).tolist(),
            "l1": (np.abs(h - target[i]) * theta[i]).mean((1, 2)).tolist(),
            "differ": (h != target[i]).mean((1, 2)).tolist(),
            "codes": counts.tolist(),
        }

    def trace(i: int, neuron: int) -> dict[str, Any]:
        u, s = (np.array(x[i])[:, 0, neuron] for x in (drives, history))
        return {
            "layer": names[i],
            "neuron": neuron,
            "image": 0,
            "membrane": (theta[i] / 2 + u - theta[i] * s).tolist(),
            "tracer": s.tolist(),
            "spikes": np.array(spikes[i])[:, 0, neuron].tolist(),
            "drive": u.tolist(),
            "target": float(target[i][0, neuron]),
            "scale": float(theta[i]),
        }

    def raster(i: int) -> dict[str, Any]:
        o = np.array(spikes[i])[:, 0, :16]
        return {
            "name": names[i],
            "neurons": list(range(16)),
            "spikes": [[int(t) + 1, int(n), int(o[t, n])] for t, n in zip(*np.nonzero(o))],
        }

    def weight(i: int) -> dict[str, Any]:
        counts, edges = np.histogram(weights[i], bins=40)
        return {
            "name": names[i].replace("relu", "conv"),
            "bits": 8,
            "min": float(weights[i].min()),
            "max": float(weights[i].max()),
            "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
        }

    agreement = [float((p == truth).mean()) for p in predicted]
    accuracy = [float((p == labels).mean()) for p in predicted]

    def point(threshold: float | None, t: int) -> dict[str, Any]:
        given = {"rule": "margin", "threshold": threshold, "mean_step": float(t)}
        return {**given, "accuracy": accuracy[min(t, steps - 1)], "spikes": 100.0 * t}

    versions = {"spikezip": "0.1.0", "torch": "2.13.0", "python": "3.11.2"}
    conditions = [
        ("C1", "Every quantizer is a staircase with lowest <= Q(0) = 0 <= highest; S_0 = 0 and V_0 = θ/2."),
        ("C2", "Everything else is a function of the accumulated signal."),
        ("C3", "Input and bias are delivered exactly once, by a finite T_off."),
        ("C4", "The graph is acyclic."),
        ("C5", "Both spike signs, tracer limits equal to the quantizer's, no leak."),
        ("C6", "The same tie rule, floor(u + 1/2), and exact or same-kernel arithmetic."),
    ]
    return {
        "format": "spikezip.record/1",
        "name": name,
        "created": "2026-01-05T12:00:00+00:00",
        "command": "spikezip convert resnet20 --data cifar10 --levels 8",
        "seed": seed,
        "versions": versions,
        "commit": "abc1234",
        "data": {"name": "random", "split": "test", "images": IMAGES},
        "network": {
            "parameters": macs,
            "neurons": WIDTH * layers,
            "tracker_layers": layers,
            "weight_bits": 8,
            "residual": "vanilla",
            "fine_tuning": "none",
        },
        "encoding": {"name": "pulse", "t_off": 1},
        "neuron": "ST-BIF",
        "slew": 1,
        "steps": steps,
        "engine": "sweep",
        "accuracy": {"ann": 0.92, "qann": float((truth == labels).mean()), "snn": accuracy},
        "agreement": agreement,
        "settled": {
            "outcome": "SETTLED" if settled else "STEP_LIMIT",
            "t_off": 1,
            "first_output_spike": 1,
            "t_eq_mean": float(t_eq.mean()) if settled else None,
            "t_eq_max": int(t_eq.max()) if settled else None,
            "bound": 1 + layers * (HIGHEST - 1),
            "t_eq_histogram": histogram,
        },
        "compared": IMAGES,
        "layers": [layer(i) for i in range(layers)],
        "weights": [weight(i) for i in range(layers)],
        "energy": {
            "images": 32,
            "counts": [],
            "models": [
                {
                    "name": "horowitz-45nm-int8",
                    "source": "Horowitz, ISSCC 2014: 45 nm, int8 MAC 0.23 pJ, AC 0.03 pJ",
                    "snn_pj": (total * 0.03 + macs * 0.01).tolist(),
                    "qann_pj": macs * 0.23,
                    "ann_pj": macs * 4.6,
                },
                {
                    "name": "memory-aware",
                    "source": "Lemaire et al. 2022",
                    "snn_pj": (total * 0.2).tolist(),
                    "qann_pj": macs * 0.5,
                    "ann_pj": macs * 9.0,
                },
            ],
            "uncounted": ["softmax: exp"],
            "layers": [
                {
                    "name": names[i],
                    "kind": "linear",
                    "input": "analog" if i == 0 else "ternary",
                    "snn_pj": float(synops[i, -1] * 0.03),
                    "qann_pj": WIDTH * WIDTH * 0.23,
                    "synops": synops[i].tolist(),
                }
                for i in range(layers)
            ],
        },
        "synops": total.tolist(),
        "traces": [trace(2, 3), trace(layers - 1, 10)],
        "raster": {"image": 0, "layers": [raster(i) for i in (0, layers // 2, layers - 1)]},
        "audit": {
            "spike_driven": True,
            "images": IMAGES,
            "steps": steps,
            "rows": [
                {
                    "name": names[i].replace("relu", "conv"),
                    "op": "linear",
                    "input": "ternary" if i else "analog input",
                    "streams": [names[i - 1]] if i else ["x"],
                    "synapses": WIDTH * WIDTH,
                    "acs": float(synops[i, -1]) if i else 0.0,
                    "macs": 0.0 if i else float(WIDTH * WIDTH),
                    "as_macs": float(synops[i, -1]),
                }
                for i in range(layers)
            ],
        },
        "exactness": [
            {"name": n.replace("relu", "conv"), "op": "linear", "bits": 18.5 + i, "arithmetic": "float32"}
            for i, n in enumerate(names[:3])
        ],
        "early_exit": [
            {**point(0.8, 7), "curve": [point(c, t) for c, t in zip((0.5, 0.7, 0.8, 0.9, 1.0), (3, 5, 7, 9, 13))]},
            {**point(None, 14), "rule": "settled", "curve": []},
        ],
        "certificate": {
            "equal": not sum(wrong),
            "images": IMAGES,
            "mismatches": sum(wrong),
            "outputs_equal": not sum(wrong),
            "engine": "reference",
            "layers": [{"name": n, "mismatches": w, "codes_checked": IMAGES * WIDTH} for n, w in zip(names, wrong)],
            "settled_at": {"max": int(t_eq.max()), "mean": float(t_eq.mean())} if settled else None,
            "bound": 1 + layers * (HIGHEST - 1),
            "conditions": [{"id": i, "text": text, "holds": True, "evidence": "checked"} for i, text in conditions],
            "weights_sha256": "0" * 64,
            "seed": seed,
            "versions": versions,
        },
    }


@pytest.fixture(scope="session")
def make_record():
    """The maker of records; every call gives a fresh one that a test may change."""
    return build_record
