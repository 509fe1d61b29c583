"""Running: the fast engine does what the reference does, whatever the batch, the block and the moment of stopping."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from random_networks import BLOCKS, Drawn, shuffle_statistics
from spikezip.errors import InputError, StageError
from spikezip.graph import capture, network
from spikezip.levels import Levels
from spikezip.measure import verify
from spikezip.morph import Morph, Residual, morph
from spikezip.pipeline import convert
from spikezip.pipeline import spike as spike_for_users
from spikezip.quantize import quantize
from spikezip.run import Engine, Outcome, Run, State, execute, sweep
from spikezip.spike import Constant, Even, Pulse, spike

IMAGES = torch.randn(6, *Drawn.input_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
# Images that settle at different times: faint ones sooner.
IMAGES = IMAGES * torch.tensor([0.0, 0.1, 0.3, 1.0, 2.0, 5.0], dtype=torch.float64).reshape(-1, 1, 1, 1)


def quantized(model: nn.Module, levels: int | Levels = 5, choice: Morph = Morph(), images: Tensor = IMAGES):
    model = shuffle_statistics(model).double().eval()
    return quantize(morph(capture(model, images[:1]), choice), levels, images)


@pytest.fixture(scope="module")
def everything():
    """A QANN in float64 with every kind of block and two outputs, residuals re-routed."""
    return quantized(Drawn(list(BLOCKS), outputs=2), choice=Morph(residual=Residual.RCR))


@pytest.fixture(scope="module")
def plain():
    """A deep, plain one: some images take many steps to settle, some few."""
    images = IMAGES[:1]
    return quantize(morph(capture(Drawn(["residual"] * 3, seed=1).double(), images)), 8, IMAGES)


def codes_by_step(snn, images: Tensor, engine: Engine, steps: int, **options) -> tuple[Run, dict[str, Tensor]]:
    """The run, and each layer's tracers at every step for every image, as an observer is told them."""
    seen: dict[str, Tensor] = {}

    def observe(layer: str, t: int, indices: Tensor, codes: Tensor) -> None:
        if layer not in seen:
            seen[layer] = torch.full((steps, len(images), *codes.shape[2:]), torch.nan, dtype=codes.dtype)
        seen[layer][t - 1 : t - 1 + len(codes), indices] = codes
        seen[layer][t - 1 + len(codes) :, indices] = codes[-1]  # silent unless told otherwise

    run = execute(snn, images, steps, engine=engine, observe=observe, **options)
    return run, seen


def same_runs(a: Run, b: Run) -> None:
    """Bit for bit the same spikes, codes and times; outputs to rounding (of sums over batches of another size)."""
    assert (a.steps, a.outcome, a.t_off) == (b.steps, b.outcome, b.t_off)
    assert torch.equal(a.settled_at, b.settled_at)
    assert a.codes.keys() == b.codes.keys() == a.spikes.keys() == b.spikes.keys()
    for name in a.codes:
        assert torch.equal(a.codes[name], b.codes[name]), name
        assert torch.equal(a.spikes[name], b.spikes[name]), name
        assert torch.equal(a.negative[name], b.negative[name]), name
    for x, y in zip(a.outputs, b.outputs, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)


# -- the two engines --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("encoding", "slew"), [(Pulse(), 1), (Even(3), 2), (Even(11), 1), (Constant(), 1)])
def test_sweep_is_the_reference(everything, encoding, slew):
    snn = spike(everything, encoding, slew=slew)
    expected, seen = codes_by_step(snn, IMAGES, Engine.REFERENCE, 20)
    found, also_seen = codes_by_step(snn, IMAGES, Engine.SWEEP, 20)
    assert (expected.engine, found.engine) == ("reference", "sweep")
    same_runs(found, expected)
    for name, _ in snn.layers:
        assert torch.equal(also_seen[name], seen[name]), name


def test_biases_may_be_released_differently(everything):
    snn = spike(everything, Pulse(), bias_encoding=Even(4))
    expected = execute(snn, IMAGES, 20, engine=Engine.REFERENCE)
    same_runs(execute(snn, IMAGES, 20), expected)
    assert expected.t_off == 4
    assert torch.equal(expected.logits[-1], snn.qann(IMAGES)[0])
    assert not torch.equal(expected.logits[0], execute(spike(everything), IMAGES, 1, engine=Engine.REFERENCE).logits[0])


@pytest.mark.parametrize("block", [1, 2, 5, 64])
def test_blocks_of_any_size_agree(plain, block):
    snn = spike(plain)
    expected = sweep(snn, (IMAGES,), 25)
    same_runs(sweep(snn, (IMAGES,), 25, block=block), expected)


@pytest.mark.parametrize("engine", Engine)
@pytest.mark.parametrize("batch", [1, 2, 4])
def test_batches_of_any_size_agree(plain, engine, batch):
    snn = spike(plain)
    same_runs(execute(snn, IMAGES, 25, engine=engine, batch=batch), execute(snn, IMAGES, 25, engine=engine))


@pytest.mark.parametrize("engine", Engine)
def test_stopping_early_changes_nothing(plain, engine):
    snn = spike(plain)
    stopped, went_on = (execute(snn, IMAGES, 25, engine=engine, stop=stop) for stop in (True, False))
    assert int(stopped.settled_at.max()) < 25
    same_runs(stopped, went_on)


@pytest.mark.parametrize("wiring", ["tokens times batch", "images on both sides"])
def test_the_batch_as_inner_index(wiring):
    """As in ``nn.MultiheadAttention``: rows are ``tokens * batch``, with neurons right there."""

    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            rows = x.transpose(0, 1).reshape(-1, 3)
            hidden = torch.relu(self.a(rows))
            if wiring == "images on both sides":
                hidden = torch.relu(self.a(hidden) + rows)
            return self.b(hidden).reshape(4, -1, 2).transpose(0, 1)

    images = torch.randn(5, 4, 3, dtype=torch.float64) * torch.arange(5).reshape(-1, 1, 1)
    for encoding in (Pulse(), Even(3)):
        snn = spike(quantized(Rows(), images=images), encoding)
        expected = execute(snn, images, 20, engine=Engine.REFERENCE)
        assert torch.equal(expected.logits[-1], snn.qann(images))
        same_runs(execute(snn, images, 20), expected)
        one_by_one = execute(snn, images, 20, engine=Engine.REFERENCE, batch=1)
        same_runs(one_by_one, expected)


# -- settling ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", [Pulse(), Even(3)])
def test_settled_at_is_the_first_step_without_anything_to_come(plain, encoding):
    run, seen = codes_by_step(spike(plain, encoding), IMAGES, Engine.SWEEP, 25)
    spikes = run.total_spikes
    final = {name: run.codes[name] for name in seen}
    for image, t in enumerate(run.settled_at.tolist()):
        assert not spikes[t:, image].any()
        assert t == run.t_off or spikes[t - 1, image] > 0
        assert all(torch.equal(codes[t - 1, image], final[name][image]) for name, codes in seen.items())
    assert len(set(run.settled_at.tolist())) > 1, "the images were to settle at different times"


def test_settled_images_leave_the_batch(plain):
    running = {}

    def observe(layer: str, t: int, indices: Tensor, codes: Tensor) -> None:
        running[t] = set(indices.tolist())

    run = sweep(spike(plain), (IMAGES,), 30, block=2, observe=observe)
    for t, images in running.items():
        assert images == {i for i, at in enumerate(run.settled_at.tolist()) if at >= t}
    assert len(running[1]) > len(running[max(running)]) > 0


def test_spikes_are_the_moves_of_the_codes(plain):
    run, seen = codes_by_step(spike(plain), IMAGES, Engine.SWEEP, 25)
    for name, codes in seen.items():
        moves = torch.cat([codes[:1], codes[1:] - codes[:-1]]).flatten(2)
        assert moves.abs().max() == 1
        assert torch.equal(run.spikes[name], moves.abs().sum(2).long())
        assert torch.equal(run.negative[name], (moves < 0).sum(2))


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_whole_numbers_times_a_real_one(dtype):
    class Halved(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(4, 3)

        def forward(self, x):
            return self.lin(torch.relu(x * 0.3))

    torch.manual_seed(0)
    x = torch.randint(0, 9, (8, 4)).to(dtype)
    model = Halved()
    with torch.no_grad():  # in eighths, as the codes: sums are exact in any batch
        for weight in model.parameters():
            weight.mul_(8).round_().div_(8)
    qann = quantize(morph(capture(model, x[:2])), 8, x)
    qann.get_submodule("relu").scale.data.fill_(0.375)
    snn = spike(qann)
    found, wanted = (execute(snn, x, 8, engine=engine) for engine in (Engine.SWEEP, Engine.REFERENCE))
    assert torch.equal(found.logits, wanted.logits)


def test_too_few_steps_say_so(plain):
    full = execute(spike(plain), IMAGES, 25)
    short = execute(spike(plain), IMAGES, 4)
    assert (full.outcome, short.outcome) == (Outcome.SETTLED, Outcome.STEP_LIMIT)
    settled = full.settled_at <= 4
    assert 0 < int(settled.sum()) < len(IMAGES)
    assert torch.equal(short.settled_at, torch.where(settled, full.settled_at, -1))
    torch.testing.assert_close(short.logits, full.logits[:4], rtol=1e-12, atol=1e-12)


def test_nothing_has_settled_before_the_release_is_over(plain):
    run = execute(spike(plain, Even(9)), IMAGES, 8)
    assert run.outcome is Outcome.STEP_LIMIT
    assert run.settled_at.tolist() == [-1] * len(IMAGES)


@pytest.mark.parametrize("engine", Engine)
def test_as_many_steps_as_asked_for(plain, engine):
    snn = spike(plain)
    open_ended = execute(snn, IMAGES, engine=engine)
    assert open_ended.steps == int(open_ended.settled_at.max()) <= 1 + snn.bound
    longer = execute(snn, IMAGES, open_ended.steps + 7, engine=engine)
    assert longer.steps == len(longer.logits) == open_ended.steps + 7
    assert torch.equal(longer.logits[-1], open_ended.logits[-1])
    assert not longer.total_spikes[open_ended.steps :].any()
    assert execute(snn, IMAGES, 1, engine=engine).steps == 1


# -- state ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", Engine)
@pytest.mark.parametrize("pause", [1, 3, 10])
def test_going_on_from_a_state_is_going_through(plain, engine, pause):
    snn = spike(plain)
    whole = execute(snn, IMAGES, 20, engine=engine)
    first = execute(snn, IMAGES, pause, engine=engine)
    kept = {name: codes.clone() for name, codes in first.codes.items()}
    rest = execute(snn, IMAGES, 20 - pause, engine=engine, state=first.state, batch=4)
    assert all(torch.equal(first.codes[name], kept[name]) for name in kept), "a state is a value: it is not written to"
    for name in kept:
        assert torch.equal(rest.codes[name], whole.codes[name])
        assert torch.equal(torch.cat([first.spikes[name], rest.spikes[name]]), whole.spikes[name])
    torch.testing.assert_close(torch.cat([first.logits, rest.logits]), whole.logits, rtol=1e-12, atol=1e-12)


def test_the_next_image_may_follow_on_the_last(plain):
    """A stream: trackers go from one image's codes to the next's, and settle on its QANN's answer all the same."""
    snn = spike(plain)
    state = State()
    for images in (IMAGES, IMAGES.flip(0), -IMAGES):
        run = execute(snn, images, engine=Engine.REFERENCE, state=state)
        assert torch.equal(run.logits[-1], snn.qann(images))
        state = run.state
    again = execute(snn, -IMAGES, 1, state=state)
    assert not again.total_spikes.any()
    assert again.settled_at.tolist() == [1] * len(IMAGES)


# -- inputs -----------------------------------------------------------------------------------------------------------


def test_two_inputs():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(2, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.c(torch.relu(self.a(x)) * torch.relu(self.b(y)))

    x, y = torch.randn(5, 3), torch.randn(5, 2)
    snn = spike(quantize(capture(Both(), (x, y)), 4, [(x, y)]), Even(2))
    assert torch.equal(execute(snn, (x, y), engine=Engine.REFERENCE).logits[-1], snn.qann(x, y))
    with pytest.raises(InputError, match="takes 2 inputs; 1 were given"):
        execute(snn, x)
    with pytest.raises(InputError, match=r"different batch sizes: \[5, 4\]"):
        execute(snn, (x, y[:4]))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES[:, :1], r"shape \(6, 1, 5, 5\); this network takes \[B, 2, 5, 5\]"),
        (IMAGES[0], r"shape \(2, 5, 5\); this network takes"),
        (IMAGES[:0], "B ≥ 1"),
        (IMAGES.float(), r"is torch.float32; this network takes torch.float64.*x\.to"),
        (IMAGES / 0, "holds NaN or infinity"),
        (["a picture"], "is a str; pass a torch.Tensor"),
    ],
)
@pytest.mark.parametrize("engine", Engine)
def test_images_that_do_not_fit(plain, engine, images, message):
    with pytest.raises(InputError, match=message):
        execute(spike(plain), images, 4, engine=engine)


@pytest.mark.parametrize("steps", [0, -1, 2.0, True])
def test_steps_are_a_whole_number(plain, steps):
    with pytest.raises(StageError, match=r"steps=.*: give a whole number, at least 1"):
        execute(spike(plain), IMAGES, steps)


def test_a_constant_current_needs_an_end(plain):
    with pytest.raises(StageError, match="Constant encoding lasts as long as the run: say how many steps"):
        execute(spike(plain, Constant()), IMAGES)


# -- rounding ---------------------------------------------------------------------------------------------------------


def test_in_float32_engines_differ_at_ties_only():
    """Sums over another batch size may round differently: where a drive is at a tie, a code may differ by one level."""
    images = torch.randn(16, *Drawn.input_shape)
    model = shuffle_statistics(Drawn(["chain", "residual", "chain"])).eval()
    snn = spike(quantize(morph(capture(model, images[:1])), 8, images))
    _, expected = codes_by_step(snn, images, Engine.REFERENCE, 20)
    _, found = codes_by_step(snn, images, Engine.SWEEP, 20)
    differing = sum(int((found[name] != expected[name]).sum()) for name in expected)
    assert max(float((found[name] - expected[name]).abs().max()) for name in expected) <= 1
    assert differing <= 1e-3 * sum(codes.numel() for codes in expected.values())


def test_unusable_engines_and_images(plain):
    with pytest.raises(StageError, match=r"engine='sweep': give one of Engine\.REFERENCE"):
        execute(spike(plain), IMAGES, engine="sweep")
    for method in (spike_for_users(plain).run, spike_for_users(plain).stream):
        with pytest.raises(StageError, match="engine='': give one of"):
            method(IMAGES if method.__name__ == "run" else IMAGES.unsqueeze(0), 2, engine="")
    with pytest.raises(InputError, match=r"is a ndarray; pass a torch\.Tensor"):
        execute(spike(plain), IMAGES.numpy())


class Elsewhere(nn.Module):
    """Returns its values in several layouts, as a recurrent network returns its last state before the batch."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = self.last(torch.relu(self.first(x)))
        return y, y.unsqueeze(0), y.t()


class AtPlaces(nn.Module):
    """A network of token numbers, whose answer is taken where ``pick(h, t)`` says."""

    def __init__(self, pick):
        super().__init__()
        torch.manual_seed(0)
        self.pick = pick
        self.embed, self.hidden, self.head = nn.Embedding(7, 16), nn.Linear(16, 16), nn.Linear(16, 10)

    def forward(self, t: Tensor) -> Tensor:
        return self.head(self.pick(torch.relu(self.hidden(self.embed(t))), t))


def test_an_index_into_all_images_is_run_by_the_reference_engine():
    tokens = torch.randint(0, 7, (16, 4), generator=torch.Generator().manual_seed(0))
    model = AtPlaces(lambda h, t: h.reshape(-1, 16)[t.argmax(-1) + 4 * torch.arange(t.size(0))]).eval()
    snn = convert(model, tokens, tokens)
    with pytest.raises(StageError, match=r"'arange' .*place in the batch.*reference engine"):
        snn.run(tokens, engine=Engine.SWEEP)
    for options in ({}, {"batch": 3}, {"engine": Engine.EVENT}):
        assert torch.equal(snn.run(tokens, **options).answer, snn.qann(tokens))
    assert verify(snn, tokens).equal


class Causal(nn.Module):
    """Attends to the words before, by a mask that each image picks its own line of, as language models make it."""

    def __init__(self, words: Callable[[Tensor], Tensor]):
        super().__init__()
        torch.manual_seed(0)
        self.words = words
        self.embed, self.hidden, self.head = nn.Embedding(7, 16), nn.Linear(16, 16), nn.Linear(16, 10)

    def forward(self, t: Tensor) -> Tensor:
        h = torch.relu(self.hidden(self.embed(self.words(t))))
        size, place = t.size(1), torch.arange(t.size(1))
        line = torch.arange(t.size(0))[:, None, None]
        ends = (self.words(t) != 0).long().cumsum(1)
        seen = (place[None, :, None] >= place) & (ends[line, place[None, :, None]] == ends[line, place])
        scores = (h @ h.transpose(1, 2)).masked_fill(~seen.expand(-1, size, size), -1e4)
        return self.head(scores.softmax(-1) @ h)


@pytest.mark.parametrize("chunk", [None, 1, 2, 5])
def test_each_image_may_pick_its_own_line_before_the_first_neuron(chunk):
    tokens = torch.randint(0, 7, (5, 6), generator=torch.Generator().manual_seed(0))
    snn = convert(Causal(lambda t: t).eval(), tokens, tokens)
    assert any(network.spec(n).placed for n in snn.graph.graph.nodes if "spec" in n.meta)
    slow = execute(snn, tokens, engine=Engine.REFERENCE)
    fast = sweep(snn, (tokens,), slow.steps, chunk=chunk)
    steps = min(slow.steps, fast.steps)
    assert steps > 4
    assert torch.equal(slow.outputs[0][:steps], fast.outputs[0][:steps])
    assert torch.equal(slow.answer, fast.answer)
    assert torch.equal(fast.answer, snn.qann(tokens))


def test_not_where_there_may_be_a_row_for_each_step():
    values = torch.rand(5, 6, generator=torch.Generator().manual_seed(0))
    snn = convert(Causal(lambda t: (4 * t).long() % 7).eval(), values, values)
    for options in ({}, {"encoding": Even(3)}):
        again = spike_for_users(snn.qann, **options)
        with pytest.raises(StageError, match=r"'arange.*' .*place in the batch.*reference engine"):
            again.run(values, engine=Engine.SWEEP)
        assert torch.equal(again.run(values).answer, snn.qann(values))


def rows(t: Tensor) -> Tensor:
    return torch.arange(t.size(0))


@pytest.mark.parametrize(
    "pick",
    [
        lambda h, t: h[rows(t), t.argmax(-1)],
        lambda h, t: h[rows(t), -1],
        lambda h, t: h[rows(t)[:, None], t[:, :3].int() % 4 - 4].sum(1),
        lambda h, t: h.transpose(1, 2)[rows(t), :, t[:, 0] % 4 - 2],
    ],
)
def test_one_place_of_each_image(pick):
    tokens = torch.randint(0, 7, (16, 4), generator=torch.Generator().manual_seed(0))
    model = AtPlaces(pick).eval()
    assert torch.equal(capture(model, tokens)(tokens), model(tokens))
    snn = convert(model, tokens, tokens)
    for options in ({"engine": Engine.SWEEP}, {"engine": Engine.SWEEP, "batch": 3}, {"engine": Engine.EVENT}):
        assert torch.equal(snn.run(tokens, **options).answer, snn.qann(tokens))


def test_outputs_come_images_first_wherever_the_network_puts_them():
    images = torch.randn(7, 4, generator=torch.Generator().manual_seed(1))
    snn = convert(Elsewhere(), images[:2], images)
    plain, before, behind = snn.qann(images)
    for engine in Engine:
        run = execute(snn, images, engine=engine)
        assert verify(snn, images, engine=engine).equal
        for mine, theirs in zip(run.outputs, (plain, before.transpose(0, 1), behind.t()), strict=True):
            assert torch.equal(mine[-1], theirs)
