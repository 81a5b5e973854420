"""Recipes: the paper's, their settings, what is refused."""

from dataclasses import replace

import pytest
import torch

from rdpnet_timm.train import RECIPES, Recipe


def test_the_papers_rate_is_torchs_cosine_annealing():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=200)
    for epoch in range(200):
        assert RECIPES["paper"].learning_rate_at(epoch) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        schedule.step()


def test_the_papers_recipe_is_the_papers():
    paper = RECIPES["paper"]
    stated = (paper.epochs, paper.batch_size, paper.learning_rate, paper.momentum, paper.weight_decay)
    assert stated == (200, 128, 0.1, 0.9, 1e-4) and paper.flip
    added = (paper.crop_padding, paper.cutout, paper.mixup, paper.ema, paper.label_smoothing, paper.warmup_epochs)
    assert not any(added) and not paper.nesterov


@pytest.mark.parametrize(
    ("epoch", "expected"), [(0, 0), (1, 0.1), (2, 0.2), (4, 0.2), (5, 0.2), (7.5, 0.1), (10, 0), (12, 0)]
)
def test_the_rate_rises_stays_and_falls_linearly(epoch, expected):
    recipe = Recipe(epochs=10, learning_rate=0.2, warmup_epochs=2, cooldown=0.5)
    assert recipe.learning_rate_at(epoch) == pytest.approx(expected)


def test_settings_are_read_by_their_type():
    recipe = Recipe().with_settings(["batch_size=64", "ema=0.9", "nesterov=True", "cooldown=0.5"])
    assert recipe == replace(Recipe(), batch_size=64, ema=0.9, nesterov=True, cooldown=0.5)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("lr=1", "no setting 'lr'; there are epochs"),
        ("ema=x", "ema=0.0"),
        ("epochs=None", "epochs=200"),
        ("batch_size=1.5", "batch_size=128"),
        ("nesterov=2", "nesterov=False"),
        ("epochs=-1", "epochs must be above 0, got -1"),
    ],
)
def test_a_wrong_setting_is_refused_with_what_was_expected(setting, message):
    with pytest.raises(ValueError, match=message):
        Recipe().with_settings([setting])


@pytest.mark.parametrize(
    "wrong",
    [
        dict(epochs=0),
        dict(epochs=-1),
        dict(epochs=float("nan")),
        dict(epochs=float("inf")),
        dict(batch_size=0),
        dict(learning_rate=-0.1),
        dict(momentum=1.0),
        dict(weight_decay=-1e-4),
        dict(cooldown=0.0),
        dict(label_smoothing=1.0),
        dict(crop_padding=-1),
        dict(ema=1.5),
        dict(small_size=0),
    ],
    ids=str,
)
def test_a_value_out_of_its_range_is_refused_with_the_value(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=rf"{name} must be .*got {value}"):
        Recipe(**wrong)
