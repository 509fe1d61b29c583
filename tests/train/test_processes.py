"""Two processes take the steps of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from training_nets import pet_plan, residual, residual_data

from spikezip import capture
from spikezip.errors import OutputError, RecipeError
from spikezip.train import PET, QAT, SGD, Capped, InTurn, Rescaled, train

OBJECTIVES = {
    "qat": QAT(),
    "pet": PET((Capped(1), Rescaled(4))),
    "pet-in-turn": PET((Capped(1), Rescaled(4)), execution=InTurn()),
}


class Partly(nn.Module):
    """A network of one's own that does not use all of its parameters."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head, self.unused = nn.Linear(16, 5), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


class Heads(nn.Module):
    """A network of two outputs."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(16, 5), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.first(x.flatten(1)), self.second(x.flatten(1))


class First(QAT):
    """An objective of one's own that reads the first output alone."""

    def loss(self, module: nn.Module, images: Tensor, labels: Tensor):
        return self.criterion(module(images)[0], labels)


def heads_trained(out: Path | None = None) -> nn.Module:
    network = capture(Heads(), residual_data().images[:2])
    return train(network, residual_data(), replace(plan("qat"), objective=First()), out=out).network


def normalised() -> nn.Module:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4, momentum=0.5)
    return nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(16, 5))


def plan(name: str):
    # 30 images in two parts of 15: the processes get 8 and 7 of each.
    return pet_plan(
        objective=OBJECTIVES[name],
        epochs=2,
        batch=30,
        accumulate=2,
        clip=5.0,
        validation_images=18,  # of 21: the last part is cut to 3
        log_every=1,
        optimizer=SGD(0.1, scale_rate=1.0),
    )


def main(out: str) -> None:
    torch.set_num_threads(1)
    (Path(out) / f"process-{os.environ['RANK']}-of-{os.environ['WORLD_SIZE']}").touch()
    try:
        train(residual(), residual_data(), plan("qat"), out=Path(out) / "taken")
    except OutputError:
        (Path(out) / f"refused-{os.environ['RANK']}").touch()
    for name in OBJECTIVES:
        train(residual(), residual_data(), plan(name), out=Path(out) / name)
    train(Partly(), residual_data(), plan("qat"), out=Path(out) / "partly")
    heads_trained(Path(out) / "heads")
    for ema in (None, 0.9):
        done = train(normalised(), residual_data(), replace(plan("qat"), ema=ema, validation_images=None))
        images, labels = next(residual_data().batches("val", 21, shuffle=False))
        own = nn.functional.cross_entropy(done.network(images), labels).item()
        told = {"own": own, "validated": done.history[-1].validation["loss"]}
        (Path(out) / f"normalised-{ema}-{os.environ['RANK']}.json").write_text(json.dumps(told))


def launch(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    # Without MPI, `accelerate launch --cpu` starts one process only; on GPUs it starts this launcher of torch's.
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    environment["ACCELERATE_USE_CPU"] = "true"
    return subprocess.run(
        [*launcher, __file__, *arguments], env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("two")
    (out / "taken").mkdir()
    (out / "taken" / "mine.txt").write_text("kept")
    done = launch([str(out)])
    assert done.returncode == 0, done.stderr[-3000:]
    assert [p.name for p in sorted(out.glob("process-*"))] == ["process-0-of-2", "process-1-of-2"]
    return out


@pytest.mark.parametrize("name", OBJECTIVES)
def test_two_processes_give_the_losses_and_weights_of_one(name: str, two_processes: Path, tmp_path: Path):
    """To 1e-5: sums are taken in another order."""
    one = train(residual(), residual_data(), plan(name), out=tmp_path / name)
    two = json.loads((two_processes / name / "history.json").read_text())
    for mine, theirs in zip(one.history, two, strict=True):
        assert mine.loss == pytest.approx(theirs["loss"], rel=1e-5)
        assert mine.numbers == pytest.approx(theirs["numbers"], rel=1e-5)
        assert mine.validation == pytest.approx(theirs["validation"], rel=1e-5)
    weights = load_file(two_processes / name / "network.safetensors")
    before = residual().state_dict()
    for key, tensor in one.network.state_dict().items():
        torch.testing.assert_close(weights[key], tensor, rtol=1e-4, atol=1e-5)
        if key.endswith("scale"):
            moved = (tensor - before[key]).abs()
            assert moved > 100 * (tensor - weights[key]).abs(), "the scale must move for this to say anything"


def test_a_parameter_that_is_not_used_is_left_as_it_is(two_processes: Path):
    """As by one process."""
    one = train(Partly(), residual_data(), plan("qat")).network
    weights = load_file(two_processes / "partly" / "network.safetensors")
    for key, tensor in one.state_dict().items():
        torch.testing.assert_close(weights[key], tensor, rtol=1e-4, atol=1e-5)
    assert torch.equal(weights["unused.weight"], Partly().unused.weight)


def test_an_objective_may_leave_an_output_of_a_captured_network(two_processes: Path):
    weights = load_file(two_processes / "heads" / "network.safetensors")
    for key, tensor in heads_trained().state_dict().items():
        torch.testing.assert_close(weights[key], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ema", [None, 0.9])
def test_all_processes_validate_and_return_one_network(ema: float | None, two_processes: Path):
    """Statistics of BatchNorm too, which each process takes from its own images."""
    told = [json.loads((two_processes / f"normalised-{ema}-{rank}.json").read_text()) for rank in range(2)]
    assert told[0] == told[1]
    assert told[0]["own"] == pytest.approx(told[0]["validated"], rel=1e-5)


def test_what_the_main_process_refuses_all_refuse(two_processes: Path):
    assert [p.name for p in sorted(two_processes.glob("refused-*"))] == ["refused-0", "refused-1"]
    assert [p.name for p in (two_processes / "taken").iterdir()] == ["mine.txt"]


def test_a_batch_too_small_to_share():
    with pytest.raises(RecipeError, match="less than one image to each of 1 processes"):
        train(residual(), residual_data(count=3, held_out=1), pet_plan(objective=QAT(), batch=4, accumulate=4))


if __name__ == "__main__":
    main(sys.argv[1])
