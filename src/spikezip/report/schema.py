"""What a record holds, version 1: the parts of ``record.json``, each checked for itself and against the others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(ge=0, le=1)]
Series = tuple[float, ...]
Gaps = tuple[float | None, ...]  # None where the value was not finite
Shares = tuple[Share, ...]
Count = Annotated[int, Field(ge=0)]


class _Part(BaseModel):
    """A part of the record: unknown keys are passed over, NaN and infinity are refused."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, frozen=True)


class Data(_Part):
    name: str
    split: str | None = None
    images: Count | None = None


class Network(_Part):
    parameters: Count | None = None
    neurons: Count | None = None
    tracker_layers: Count | None = None
    weight_bits: int | None = None
    residual: str | None = None
    fine_tuning: str | None = None


class Encoding(_Part):
    name: str
    t_off: int | None = None


class Accuracy(_Part):
    """Shares of images classified rightly; everything is absent where no labels were given."""

    ann: Share | None = None
    qann: Share | None = None
    snn: Shares | None = None


class SettledPart(_Part):
    """When the network fell silent; the T_eq figures are absent where no image settled."""

    outcome: Literal["SETTLED", "CONFIDENT", "STEP_LIMIT"]
    t_off: int | None = None
    first_output_spike: int | None = None
    t_eq_mean: float | None = None
    t_eq_max: int | None = None
    bound: int | None = None
    t_eq_histogram: dict[int, Count] = {}


class Layer(_Part):
    name: str
    neurons: Count
    lowest: int
    highest: int
    scale: Annotated[float, Field(gt=0)]
    unit: Annotated[float, Field(gt=0)] | None = None  # of an integer network: the threshold that was divided out
    spikes: Series = ()
    negative: Series = ()
    rate: Series = ()
    l1: Series = ()
    differ: Shares = ()
    codes: Shares = ()

    @model_validator(mode="after")
    def _one_share_per_code(self) -> Layer:
        if self.codes and len(self.codes) != self.highest - self.lowest + 1:
            raise ValueError(f"{len(self.codes)} shares for the codes {self.lowest}..{self.highest}")
        return self


class Histogram(_Part):
    edges: Series
    counts: tuple[Annotated[float, Field(ge=0)], ...]

    @model_validator(mode="after")
    def _edges_enclose(self) -> Histogram:
        if len(self.edges) != len(self.counts) + 1:
            raise ValueError(f"{len(self.edges)} edges for {len(self.counts)} counts (one edge more is needed)")
        return self


class Weights(_Part):
    name: str
    bits: int | None = None
    min: float
    max: float
    histogram: Histogram | None = None


class EnergyModel(_Part):
    name: str
    source: str = ""
    about: str = ""
    unpriced: tuple[str, ...] = ()
    snn_pj: Series
    qann_pj: float | None = None
    ann_pj: float | None = None


class EnergyLayer(_Part):
    name: str
    kind: str = ""
    input: str = ""
    snn_pj: float | None = None
    qann_pj: float | None = None
    synops: Series = ()


class Energy(_Part):
    images: Count | None = None
    models: tuple[EnergyModel, ...] = ()
    uncounted: tuple[str, ...] = ()
    cautions: tuple[str, ...] = ()
    layers: tuple[EnergyLayer, ...] = ()


class AuditRow(_Part):
    name: str
    op: str = ""
    input: str
    streams: tuple[str, ...] = ()
    synapses: Count = 0
    acs: float | None = None
    macs: float | None = None
    as_macs: float | None = None


class Audit(_Part):
    """What each synaptic operation receives; counts are absent where no images were run."""

    spike_driven: bool
    images: Count = 0
    steps: Count = 0
    rows: tuple[AuditRow, ...] = ()


class Exactness(_Part):
    """In which arithmetic an operation adds up; ``bits`` is absent off the grid."""

    name: str
    op: str = ""
    bits: float | None = None
    arithmetic: str


class Trace(_Part):
    layer: str
    neuron: int
    image: int = 0
    membrane: Gaps
    tracer: Series
    spikes: Series
    drive: Gaps = ()
    target: float | None = None
    scale: Annotated[float, Field(gt=0)]


class RasterLayer(_Part):
    """Spikes of some neurons: ``[t, index, sign]``, where ``neurons[index]`` is the neuron that fired."""

    name: str
    neurons: tuple[int, ...]
    spikes: tuple[tuple[int, int, Literal[-1, 1]], ...]

    @model_validator(mode="after")
    def _indices_exist(self) -> RasterLayer:
        for t, index, _ in self.spikes:
            if not 0 <= index < len(self.neurons) or t < 1:
                raise ValueError(
                    f"spike at step {t} of neuron index {index}: {len(self.neurons)} neurons, steps from 1"
                )
        return self


class Raster(_Part):
    image: int = 0
    layers: tuple[RasterLayer, ...] = ()


class ExitPoint(_Part):
    """What a rule of early exit gives at one threshold; 'settled' has none."""

    rule: str
    threshold: float | None = None
    mean_step: float
    accuracy: Share | None = None
    spikes: float | None = None


class EarlyExit(ExitPoint):
    """A rule as it was asked for, and what other thresholds of it would give."""

    curve: tuple[ExitPoint, ...] = ()


class Condition(_Part):
    id: str
    text: str
    holds: bool | None
    evidence: str = ""


class CertificateLayer(_Part):
    name: str
    mismatches: Count
    codes_checked: Count = 0


class SettledAt(_Part):
    max: int | None = None
    mean: float | None = None


class CertificatePart(_Part):
    equal: bool
    images: Count
    mismatches: Count
    outputs_equal: bool | None = None
    outcome: Literal["SETTLED", "CONFIDENT", "STEP_LIMIT"] | None = None
    exactness: tuple[Exactness, ...] = ()
    engine: str | None = None
    layers: tuple[CertificateLayer, ...] = ()
    settled_at: SettledAt | None = None
    bound: int | None = None
    conditions: tuple[Condition, ...] = ()
    weights_sha256: str | None = None
    seed: int | None = None
    versions: dict[str, str] = {}

    @model_validator(mode="after")
    def _does_not_contradict_itself(self) -> CertificatePart:
        wrong = self.mismatches + sum(layer.mismatches for layer in self.layers)
        if self.equal and (wrong or self.outputs_equal is False or not self.images):
            raise ValueError(
                f"it says 'equal', yet counts {wrong} mismatches on {self.images} images"
                f" (outputs equal: {self.outputs_equal}); a report will not repeat that"
            )
        return self


class Record(_Part):
    """One measured run, checked: every series has one value per step."""

    format: Literal["spikezip.record/1"]
    name: str
    steps: Annotated[int, Field(ge=1)]
    created: str | None = None
    command: str | None = None
    seed: int | None = None
    versions: dict[str, str] = {}
    commit: str | None = None
    processor: str | None = None
    data: Data | None = None
    network: Network = Network()
    encoding: Encoding | None = None
    neuron: str | None = None
    slew: float | str | None = None
    initial_code: str | None = None
    engine: str | None = None
    accuracy: Accuracy | None = None
    agreement: Shares | None = None
    settled: SettledPart | None = None
    compared: Count | None = None  # images, from the first, that l1 and differ of the layers are taken over
    layers: tuple[Layer, ...] = ()
    weights: tuple[Weights, ...] = ()
    energy: Energy | None = None
    synops: Series | None = None
    audit: Audit | None = None
    exactness: tuple[Exactness, ...] | None = None
    traces: tuple[Trace, ...] = ()
    raster: Raster | None = None
    early_exit: tuple[EarlyExit, ...] | None = None
    certificate: CertificatePart | None = None

    @property
    def graded(self) -> bool:
        """Whether a spike may have several levels; it is counted as so many spikes then."""
        return self.slew not in (None, 1)

    @property
    def busy_steps(self) -> int:
        """Steps up to T_eq of the slowest image, after which no neuron fires; all where not every image settled."""
        if self.settled is None or self.settled.outcome != "SETTLED" or not self.settled.t_eq_max:
            return self.steps
        return min(self.steps, self.settled.t_eq_max)

    @property
    def compared_images(self) -> str | None:
        """Which images codes were compared with the QANN's on; None for all. An older record does not say."""
        if self.compared is None:
            return "images compared"
        known = self.data is not None and self.data.images == self.compared
        return None if known else f"first {self.compared:,} images"

    def series(self) -> Iterator[tuple[str, Gaps]]:
        """Every per-step series with the place it is written at."""
        yield "accuracy.snn", (self.accuracy and self.accuracy.snn) or ()
        yield "agreement", self.agreement or ()
        yield "synops", self.synops or ()
        for i, layer in enumerate(self.layers):
            for key in ("spikes", "negative", "rate", "l1", "differ"):
                yield f"layers[{i}].{key}", getattr(layer, key)
        for i, trace in enumerate(self.traces):
            for key in ("membrane", "tracer", "spikes", "drive"):
                yield f"traces[{i}].{key}", getattr(trace, key)
        if self.energy:
            for i, model in enumerate(self.energy.models):
                yield f"energy.models[{i}].snn_pj", model.snn_pj
            for i, layer in enumerate(self.energy.layers):
                yield f"energy.layers[{i}].synops", layer.synops

    @model_validator(mode="after")
    def _one_value_per_step(self) -> Record:
        for where, values in self.series():
            if values and len(values) != self.steps:
                raise ValueError(f"{where} has {len(values)} values, but the run has {self.steps} steps")
        late = max((t for layer in (self.raster.layers if self.raster else ()) for t, _, _ in layer.spikes), default=0)
        if late > self.steps:
            raise ValueError(f"raster holds a spike at step {late}, but the run has {self.steps} steps")
        return self
