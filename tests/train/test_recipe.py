"""Recipes: what they say is what is planned, and what is wrong is named."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from torch import nn

from spikezip.errors import RecipeError
from spikezip.levels import Levels
from spikezip.morph.choices import Residual
from spikezip.train import (
    PET,
    QAT,
    SGD,
    SPEQ,
    AdamW,
    Capped,
    Cooldown,
    Distil,
    Folded,
    InTurn,
    MainLabels,
    PathScale,
    PathStatistics,
    PETLoss,
    Precision,
    Rescaled,
    Trajectory,
)
from spikezip.train.recipe import Recipe, Stage, check_recipe, read_recipe

EXAMPLES = sorted((Path(__file__).parents[2] / "experiments" / "recipes").glob("*.yaml"))
LEAST = {"name": "mine", "stage": "pet", "model": "spikezip:digits", "data": "digits"}


def test_there_are_examples():
    assert {"digits-ann.yaml", "digits-pet.yaml", "cifar10-resnet20-pet.yaml"} <= {p.name for p in EXAMPLES}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_every_example_is_a_recipe(path: Path):
    recipe = read_recipe(path)
    plan = recipe.plan(teacher=nn.Linear(1, 1))
    assert plan.epochs == recipe.epochs
    kinds = {Stage.PET: PET, Stage.SPEQ: SPEQ, Stage.TRAJECTORY: Trajectory}
    assert isinstance(plan.objective, kinds.get(recipe.stage, QAT))


@pytest.mark.parametrize(("data", "p"), [("cifar10", "pet"), ("cifar100", "p")])
def test_variants_differ_in_paths_and_residuals_alone(data: str, p: str):
    named = {kind: f"{data}-resnet20-{p if kind == 'p' else kind}.yaml" for kind in ("n", "p", "r", "pr")}
    found = {kind: read_recipe(EXAMPLES[0].parent / name) for kind, name in named.items()}
    for kind, recipe in found.items():
        objective = recipe.plan().objective
        assert isinstance(objective, PET)
        assert objective.paths == ((Rescaled(2, 8), Rescaled(4, 8)) if "p" in kind else ())
        assert recipe.morph.residual is (Residual.RCR if "r" in kind else Residual.VANILLA)
    rest = [recipe.model_dump(exclude={"name", "paths", "morph", "loss"}) for recipe in found.values()]
    assert all(other == rest[0] for other in rest)
    assert found["p"].loss == found["pr"].loss
    assert found["p"].loss.smoothing == found["n"].loss.smoothing == found["r"].loss.smoothing


@pytest.mark.parametrize("equal", ["passes", "images"])
def test_every_variant_of_the_ablation_is_a_recipe_of_the_same_budget(equal: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(EXAMPLES[0].parents[1])
    ablation = importlib.import_module("ablation")
    settings = {
        "network": "spikezip:digits", "data": "digits", "levels": 8, "encoding": "even:8", "epochs": 2, "batch": 32,
        "rate": 1e-3, "images": 9600, "equal": equal,
    }  # fmt: skip
    variants = ablation.variants(8)
    recipes = {name: ablation.recipe_of(name, lines, settings, 3) for name, lines in variants.items()}
    assert {recipe.stage for recipe in recipes.values()} == set(Stage) - {Stage.ANN}
    for name, recipe in recipes.items():
        plan = recipe.plan()
        images = plan.train_images or 0
        assert (plan.seed, plan.validation_split) == (3, None)
        assert images * (ablation.passes(recipe) if equal == "passes" else 1) == 9600, name
    assert [ablation.passes(r) for r in recipes.values()][:5] == [1, 3, 1, 3, 2]


def test_defaults_follow_from_the_encoding():
    pulse = check_recipe(LEAST).plan().objective
    assert isinstance(pulse, PET)
    assert pulse.paths == (Capped(1), Capped(2), Capped(4))
    even = check_recipe({**LEAST, "encoding": "even:8", "levels": {"lowest": 0, "highest": 8}})
    assert even.quantizer_levels() == Levels(0, 8)
    objective = even.plan().objective
    assert isinstance(objective, PET)
    assert objective.paths == (Rescaled(2, 8), Rescaled(4, 8))


def test_all_that_is_said_arrives():
    recipe = check_recipe(
        {
            **LEAST,
            "paths": [{"capped": 3}, {"rescaled": 2, "release": 5}],
            "execution": "recompute",
            "scale": "free",
            "loss": {
                "alpha": 0.5, "beta": 0.25, "sub_labels": "main", "temperature": 3, "smoothing": 0.1,
                "distil": {"weight": 2},
            },
            "optimizer": {"sgd": {"rate": 0.3, "momentum": 0.8, "weight_decay": 0, "scale_rate": 2, "nesterov": True}},
            "precision": "bf16", "compile": True, "ema": 0.99, "clip": 2, "batch": 6, "accumulate": 3, "epochs": 4,
            "warmup": 1.5, "cooldown": {"after": 2},
        }
    )  # fmt: skip
    assert recipe.needs_teacher
    teacher = nn.Linear(1, 1)
    plan = recipe.plan(teacher)
    assert isinstance(plan.objective, PET)
    assert plan.objective.paths == (Capped(3), Rescaled(2, 5))
    assert plan.objective.execution == InTurn(recompute=True)
    assert plan.objective.teacher is teacher
    assert plan.objective.scale is PathScale.FREE
    assert plan.objective.criterion == PETLoss(0.5, 0.25, MainLabels(3), 0.1, Distil(2, 1))
    assert plan.optimizer == SGD(0.3, 0.8, 0, 2, True)
    assert plan.compile
    assert (plan.precision, plan.ema, plan.clip, plan.batch) == (Precision.BF16, 0.99, 2, 6)
    assert (plan.accumulate, plan.epochs, plan.warmup, plan.cooldown) == (3, 4, 1.5, Cooldown(after=2, epochs=1))
    shared = {**LEAST, "statistics": "shared", "morph": {"batch_norm": "live"}}
    assert isinstance(pet := check_recipe(shared).plan().objective, PET)
    assert pet.statistics is PathStatistics.SHARED
    adamw = check_recipe({**LEAST, "stage": "qat", "optimizer": {"adamw": {"rate": 0.1}}}).plan()
    assert adamw.optimizer == AdamW(rate=0.1)
    assert isinstance(check_recipe(LEAST).plan().objective.execution, Folded)  # type: ignore[union-attr]


def test_yamls_no_is_the_precision_no(tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    path.write_text("name: a\nstage: qat\nmodel: spikezip:digits\ndata: digits\nprecision: no\n")
    assert read_recipe(path).precision is Precision.NO
    path.write_text(path.read_text().replace("precision: no", "precision: yes"))
    with pytest.raises(RecipeError, match=r"precision: .*given: True"):
        read_recipe(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epoch": 3}, r"epoch: there is no such key; did you mean epochs\?"),
        ({"loss": {"alhpa": 3}}, r"loss\.alhpa: there is no such key; did you mean alpha\?"),
        ({"optimizer": {"sgd": {"lr": 3}}}, r"optimizer\.sgd\.lr: there is no such key; known keys: rate, momentum"),
        ({"optimizer": {"adam": {}}}, r"optimizer\.adam: there is no such key; did you mean adamw\?"),
        ({"Epochs": 3}, r"Epochs: there is no such key; did you mean epochs\?"),
        ({"Range": 3}, r"Range: there is no such key; did you mean"),
        ({"optimizer": {"SGD": {"rate": 0.1}}}, r"optimizer\.SGD: there is no such key; did you mean sgd\?"),
        ({"optimizer": {"sgd": {"momentum": 0, "nesterov": True}}}, r"optimizer\.sgd: nesterov needs a momentum"),
        ({"seed": 10**20}, r"seed: input should be less than or equal to 9223372036854775807"),
        ({"train_split": "trainval"}, r"share images.*validation_split: null"),
        ({"train_split": "test", "validation_split": "test"}, r"share images.*validation_split: null"),
        ({"epochs": True}, r"epochs: true and false mean nothing here \(given: True\)"),
        ({"optimizer": {"sgd": {"rate": True}}}, r"optimizer\.sgd\.rate: true and false mean nothing"),
        ({"stage": "trajectory", "steps": [0, 0]}, r"steps and settled are all 0: nothing would be trained"),
        ({"stage": "trajectory", "steps": [0, 1, 1], "encoding": "constant"}, r"more than are trained; use even:3"),
        ({"stage": "trajectory", "steps": []}, r"stage trajectory needs 'steps'"),
        ({"stage": "trajectory", "steps": [0, True]}, r"steps: true and false mean nothing"),
        ({"paths": [{"capped": 2}, {"capped": 2}]}, r"the same path is there twice"),
        ({"paths": [{"capped": 8}]}, r"capped: 8 is above the greatest code, 7"),
        ({"paths": [{"rescaled": 9}]}, r"rescaled: 9 is the main path a second time"),
        ({"paths": [{"rescaled": 7}]}, r"rescaled: 7 is the main path a second time"),
        ({"stage": "trajectory", "steps": [0, 1], "initial_code": 8}, r"initial_code: 8 is above the greatest code, 7"),
        ({"epochs": 0}, r"epochs: input should be greater than or equal to 1 \(given: 0\)"),
        ({"epochs": 10**400}, r"epochs: input should be less than or equal to 1000000000"),
        ({"stage": "speq", "speq": {"finer": [10**30]}}, r"finer\[0\]: input should be less than or equal to 16777216"),
        ({"teacher": {"model": "spikezip:digits"}}, r"nothing is learned from it; add loss: \{distil: \{\}\}"),
        (
            {"teacher": {"model": "spikezip:digits"}, "loss": {"distil": {"features": 1}}},
            r"features are those of the model itself; remove them, or teacher:",
        ),
        ({"teacher": {"weights": "a.safetensors"}, "loss": {"distil": {}}}, r"teacher\.model: is missing"),
        ({"teacher": {"model": "a", "weight": "b"}}, r"teacher\.weight: there is no such key; did you mean weights"),
        ({"loss": {"temperature": 50}}, r"hard has no use for loss\.temperature; remove it or use main or teacher"),
        ({"epochs": "many"}, r"epochs: input should be a valid integer"),
        ({"stage": "pett"}, r"stage: input should be 'ann', 'qat', 'pet', 'trajectory' or 'speq' \(given: 'pett'\)"),
        ({"precision": "half"}, r"precision: input should be 'no', 'bf16' or 'fp16'"),
        ({"levels": 1}, r"levels: input should be greater than or equal to 2"),
        ({"levels": 10**9}, r"levels: input should be less than or equal to 16777217"),
        ({"levels": {"lowest": 1, "highest": 3}}, r"levels\.lowest: input should be less than or equal to 0"),
        ({"levels": {"lowest": 0, "highest": 0}}, r"levels 0\.\.0 are not admissible"),
        ({"encoding": "evne:8"}, r"no encoding 'evne:8'"),
        ({"encoding": "constant"}, r"no default paths"),
        ({"paths": [{"capped": 1, "rescaled": 2}]}, r"paths\[0\]: give one of 'capped: N' and 'rescaled: N'"),
        ({"paths": [{"caped": 1}]}, r"paths\[0\]\.caped: there is no such key; did you mean capped or rescaled\?"),
        ({"paths": [{"rescaled": 8, "release": 4}]}, r"release ends before the step"),
        ({"optimizer": {}}, r"optimizer: give one of 'sgd: \{\.\.\.\}' and 'adamw"),
        ({"stage": "ann", "levels": 8}, r"stage ann has no use for levels"),
        ({"stage": "ann", "refit": True}, r"stage ann has no use for refit"),
        ({"refit": True, "start": "kept.safetensors"}, r"start: gives the weights .* refit: would fit others"),
        ({"stage": "qat", "scale": "free"}, r"stage qat has no use for scale"),
        ({"stage": "speq", "morph": {"batch_norm": "live"}}, r"stage speq cannot keep BatchNorm live"),
        ({"execution": "recompute", "morph": {"batch_norm": "live"}}, r"use execution: folded or in-turn"),
        ({"start": "a/network.safetensors", "morph": {"batch_norm": "live"}}, r"is folded in .*; give the live\.safe"),
        ({"start": []}, r"start: .*at least 1 item"),
        ({"start_scale": 1.4}, r"start_scale: multiplies the step sizes of start:, and there is none"),
        ({"start": "kept.safetensors", "start_scale": 0}, r"start_scale: .*greater than 0"),
        ({"start": ["a/network.safetensors", "b/live.safetensors"]}, r"BatchNorm is live in these weights"),
        ({"start": "a/live.safetensors"}, r"BatchNorm is live in these weights; give the network\.safetensors beside"),
        ({"statistics": "shared"}, r"those of a live BatchNorm; add morph: \{batch_norm: live\}"),
        (
            {"statistics": "shared", "execution": "in-turn", "morph": {"batch_norm": "live"}},
            r"statistics: shared are those of one batch; use execution: folded",
        ),
        ({"morph": {"batch_norm": "private"}}, r"morph\.batch_norm: input should be 'folded' or 'live'"),
        ({"stage": "qat", "loss": {"alpha": 2}}, r"no use for loss\.alpha"),
        ({"model": None}, r"model: input should be a valid string"),
    ],
)
def test_what_is_wrong_is_named(change: dict, message: str):
    with pytest.raises(RecipeError, match=message):
        check_recipe({**LEAST, **change})


def test_plans_that_do_not_go_together():
    with pytest.raises(RecipeError, match="Use batch=12"):
        check_recipe({**LEAST, "batch": 10, "accumulate": 4}).plan()


def test_files_that_are_no_recipes(tmp_path: Path):
    with pytest.raises(RecipeError, match=r"cannot be read: No such file"):
        read_recipe(tmp_path / "none.yaml")
    for content, message in [
        ("a: [1", "is not YAML"),
        ("epochs: 1\nseed: 2\nepochs: 3\n", "the key 'epochs' is there twice.* line 3"),
        ("- 1", "'key: value' lines; this is list"),
        ("", "this is NoneType"),
        ("name: x\nstage: ann\nmodel: m\n", r"1 problem\(s\):\n  data: is missing"),
    ]:
        (tmp_path / "r.yaml").write_text(content)
        with pytest.raises(RecipeError, match=message):
            read_recipe(tmp_path / "r.yaml")
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match=r"cannot be read|not YAML"):
        read_recipe(tmp_path / "r.yaml")


def test_every_field_is_explained():
    from spikezip.train import Plan

    told = f"{Recipe.__doc__}{Plan.__doc__}"
    assert [name for name in Recipe.model_fields if f"{name}:" not in told] == []
