"""What a run is: its model, what it begins with, the size of its pictures."""

import json

import pytest
import timm
import torch
from small_runs import MODEL, random_images

from rdpnet_timm import reparameterize
from rdpnet_timm.checkpoint import save_model
from rdpnet_timm.cli import main
from rdpnet_timm.train import RECIPES, Run


def test_the_size_of_the_images_is_read_where_the_run_says_it():
    assert Run(MODEL, RECIPES["demo"]).image_size == (32, 32)
    overlay = ("pretrained_cfg_overlay", {"input_size": (3, 40, 48)})
    assert Run(MODEL, RECIPES["demo"], model_args=(overlay,)).image_size == (40, 48)


def test_a_run_begins_with_weights_whose_classifier_may_have_other_classes(tmp_path):
    shipped = timm.create_model(MODEL, pretrained=True)
    names = shipped.pretrained_cfg["label_names"]
    save_model(shipped, tmp_path / "w.safetensors", MODEL, {"num_classes": 10}, names)
    for weights in (MODEL, f"{MODEL}.c10", str(tmp_path / "w.safetensors")):
        for classes in (names, "0123456789", "abcd"):
            begun = Run(MODEL, RECIPES["demo"], weights=weights).create_model(classes)
            assert begun.num_classes == len(classes)
            for (name, ours), theirs in zip(begun.state_dict().items(), shipped.state_dict().values()):
                if name.startswith("head.") and classes is not names:
                    assert not torch.equal(ours, theirs), "of ten digits the classifier is not that of ten things"
                else:
                    assert torch.equal(ours, theirs), name
    save_model(reparameterize(shipped), tmp_path / "d.safetensors", MODEL, {"inference_mode": True})
    save_model(timm.create_model(MODEL, shuffle_groups=0), tmp_path / "s.safetensors", MODEL, {"shuffle_groups": 0})
    for weights, error, told in (
        ("rdpnet_050_cifar", ValueError, "no name of weights of rdpnet_025_cifar"),
        ("nowhere.pth", ValueError, "is no file"),
        (str(tmp_path / "d.safetensors"), RuntimeError, "deploy form"),
        # or the file that the run writes would name another network than was trained
        (str(tmp_path / "s.safetensors"), RuntimeError, "shuffle_groups=0, and this model has 2"),
    ):
        with pytest.raises(error, match=told):
            Run(MODEL, RECIPES["demo"], weights=weights).create_model("abcd")
    with pytest.raises(RuntimeError, match="shuffle_groups=2, and this model has 0"):
        Run(MODEL, RECIPES["demo"], model_args=(("shuffle_groups", 0),), weights=f"{MODEL}.c10").create_model("abcd")


def test_pictures_are_prepared_as_the_run_says_or_else_as_for_the_weights_it_begins_with(tmp_path):
    path = tmp_path / "w.safetensors"
    save_model(timm.create_model(MODEL), path, MODEL, {"pretrained_cfg_overlay": dict(mean=(0.5,) * 3, std=(0.2,) * 3)})
    own = (("pretrained_cfg_overlay", dict(mean=(0.1,) * 3)),)
    images = random_images(size=32)
    for arguments, mean in (((), (0.5,) * 3), (own, (0.1,) * 3)):
        run = Run(MODEL, RECIPES["demo"], model_args=arguments, weights=str(path))
        begun = run.create_model(images.classes)
        told = run.creation_args(begun, images)["pretrained_cfg_overlay"]
        for said in (begun.pretrained_cfg, told):  # the network, and the file that will be written
            assert said["mean"] == mean and said["std"] == (0.2,) * 3


def test_a_run_that_began_with_weights_says_so_and_is_another_run(tmp_path, capsys):
    arguments = ["train", "digits", "--recipe", "demo", "--epochs", "0.05", "-o", str(tmp_path)]
    assert main([*arguments, "--weights", f"{MODEL}.c10"]) == 0
    assert json.loads((tmp_path / "weights.json").read_text())["weights"] == f"{MODEL}.c10"
    assert main(arguments) == 1
    assert f"with weights {MODEL}.c10 rather than" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"num_classes": 5, "shuffle_groups": 0}, "cannot say num_classes:"),
        ({"pretrained": True}, "--weights"),
        ({"in_chans": 1}, "three colours"),
        ({"width": "abc"}, "cannot be created"),
        ({"foo": 1}, "cannot be created with the arguments.*foo"),
        ({"norm_layer": torch.nn.GroupNorm}, "what JSON can say"),
    ],
    ids=str,
)
def test_arguments_that_no_model_takes_are_refused(arguments, told):
    with pytest.raises(ValueError, match=told):
        Run(MODEL, RECIPES["demo"], model_args=tuple(arguments.items())).create_model("abcd")
