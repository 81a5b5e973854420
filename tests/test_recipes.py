"""The recipes for timm's train.py: they say what their names promise, in options that the script has."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest
import timm
import yaml

from rdpnet_timm.files import copy_configs

FOLDER = Path(__file__).parents[1] / "recipes"
RECIPES = sorted(FOLDER.glob("*.yaml"))
OWN = [path for path in RECIPES if path.stem.endswith("_ours")]


def load(name):
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


def test_there_is_a_recipe_of_the_paper_and_one_of_ours_for_each_data_set():
    assert [path.stem for path in RECIPES] == ["cifar10_ours", "cifar10_paper", "imagenet_ours", "imagenet_paper"]


def test_what_runs_in_a_clone_alone_is_not_copied(tmp_path):
    _, recipes = copy_configs(tmp_path)
    assert {path.name for path in recipes.iterdir()} == {path.name for path in FOLDER.glob("*.yaml")}


@pytest.mark.parametrize("name", ["cifar10_paper", "imagenet_paper"])
def test_the_papers_recipes_have_the_papers_settings(name):
    stated = dict(opt="momentum", momentum=0.9, weight_decay=1e-4, sched="cosine", hflip=0.5, smoothing=0.0)
    recipe = load(name)
    assert {key: recipe[key] for key in stated} == stated
    assert not {"aa", "mixup", "cutmix", "reprob", "model_ema", "kd_model_name"} & set(recipe)


def test_the_papers_cifar_recipe_is_200_epochs_of_128_at_a_rate_of_01_with_flips_alone():
    recipe = load("cifar10_paper")
    assert (recipe["epochs"], recipe["batch_size"], recipe["lr"], recipe["warmup_epochs"]) == (200, 128, 0.1, 0)

    from PIL import Image
    from timm.data.transforms_factory import create_transform

    keys = ("scale", "ratio", "hflip", "color_jitter")
    transform = create_transform(
        (3, 32, 32),
        is_training=True,
        interpolation=recipe["train_interpolation"],
        mean=(0, 0, 0),
        std=(1, 1, 1),
        **{key: recipe[key] for key in keys},
    )
    noise = Image.effect_noise((32, 32), 80).convert("RGB")
    flipped = noise.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    expected = {image.tobytes() for image in (noise, flipped)}
    seen = {transform(noise).mul(255).round().byte().permute(1, 2, 0).numpy().tobytes() for _ in range(30)}
    assert seen == expected


def test_our_recipe_for_imagenet_has_what_the_papers_lacks():
    recipe = load("imagenet_ours")
    assert recipe["smoothing"] == 0.1 and recipe["warmup_epochs"] == 5 and recipe["model_ema"] and recipe["aa"]


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.stem)
def test_our_recipes_say_how_to_distil(path):
    assert "--kd-model-name" in path.read_text()


@pytest.mark.parametrize("name", ["paper", "ours"])
def test_timms_script_and_the_trainer_have_the_same_recipe_for_cifar(name):
    from rdpnet_timm.train import RECIPES as TRAINERS

    recipe, trainers = load(f"cifar10_{name}"), TRAINERS[name]
    assert recipe["epochs"] == trainers.epochs and recipe["batch_size"] == trainers.batch_size
    assert recipe["lr"] == trainers.learning_rate and recipe["momentum"] == trainers.momentum
    assert recipe["weight_decay"] == trainers.weight_decay
    assert recipe.get("warmup_epochs", 0) == trainers.warmup_epochs and recipe["sched"] == "cosine"
    assert trainers.cooldown is None and recipe["opt"] == ("sgd" if trainers.nesterov else "momentum")
    assert recipe.get("smoothing", 0.0) == trainers.label_smoothing == trainers.mixup == 0
    assert recipe.get("scale", [1.0])[0] == pytest.approx((32 / (32 + trainers.crop_padding)) ** 2, abs=0.01)
    erased, lost = (0.02 + 1 / 3) / 2, trainers.cutout * (1 - trainers.cutout / (4 * 32)) / 32  # some lies outside
    assert recipe.get("reprob", 0.0) * erased == pytest.approx(lost**2, rel=0.05), "another share of the picture"
    assert not recipe.get("model_ema") and trainers.ema == 0


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_names_a_model_and_the_command_that_runs_it(path):
    recipe = yaml.safe_load(path.read_text())
    assert recipe["model"] in timm.list_models("rdpnet*")
    assert f"train.py --config recipes/{path.name}" in path.read_text()
    size = timm.get_pretrained_cfg(recipe["model"]).input_size
    assert recipe["img_size"] == size[1] and recipe["num_classes"] == (10 if "cifar" in path.stem else 1000)


@pytest.mark.skipif("RDPNET_TIMM_SCRIPTS" not in os.environ, reason="RDPNET_TIMM_SCRIPTS names no checkout of timm")
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_timms_train_script_knows_every_option_of_a_recipe(path, monkeypatch):
    script = Path(os.environ["RDPNET_TIMM_SCRIPTS"]) / "train.py"
    spec = importlib.util.spec_from_file_location("timm_train_script", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    unknown = set(yaml.safe_load(path.read_text())) - {action.dest for action in module.parser._actions}
    assert not unknown, f"train.py has no such options: {unknown}"
    monkeypatch.setattr(sys, "argv", ["train.py", "--config", str(path)])
    args, _ = module._parse_args()
    for key, value in yaml.safe_load(path.read_text()).items():
        assert getattr(args, key) == value
        action = next(action for action in module.parser._actions if action.dest == key)
        types = {float: (float, int), int: int, str: str}
        for item in (
            value if isinstance(value, list) else [value]
        ):  # YAML would let a text through where a number is due
            assert action.type is None or action.type not in types or isinstance(item, types[action.type]), key
