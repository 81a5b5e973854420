"""Checkpoints are read without running code, loaded whole or not at all, and converted on the way where needed."""

import argparse
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Dict

import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

import rdpnet_timm
from rdpnet_timm import weights
from rdpnet_timm.checkpoint import convert_checkpoint, load_model, save_model
from rdpnet_timm.files import atomic_path, sha256
from rdpnet_timm.measure.difference import randomize_norms
from rdpnet_timm.weights.reading import read_checkpoint

NAME = "rdpnet_025_cifar"


def trained(name: str = NAME, seed: int = 0, **kwargs: Any) -> nn.Module:
    return randomize_norms(timm.create_model(name, **kwargs), seed).eval()


def outputs(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model.eval()(torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32))


def timm_file(path: Path, weights: Dict[str, Tensor], ema: "Dict[str, Tensor] | None" = None, **args: Any) -> Path:
    """A file as timm's train.py writes it."""
    namespace = argparse.Namespace(model=NAME, model_kwargs=args)
    content = {"epoch": 3, "arch": NAME, "args": namespace, "version": 2, "state_dict": weights, "optimizer": {}}
    torch.save({**content, "state_dict_ema": ema} if ema else content, path)
    return path


def prefixed(prefix: str) -> Callable[[Dict[str, Tensor]], Dict[str, Tensor]]:
    return lambda weights: {f"{prefix}{name}": tensor for name, tensor in weights.items()}


@pytest.mark.parametrize("inference_mode", [False, True], ids=["train", "deploy"])
@pytest.mark.parametrize(
    ("file", "wrap"),
    [
        ("timm.pth.tar", None),
        ("plain.pth", dict),
        ("plain.safetensors", dict),
        ("ddp.pth", prefixed("module.")),
        ("compiled.pth", prefixed("_orig_mod.")),
        ("both.pth", prefixed("_orig_mod.module.")),
        ("peer.pth", prefixed("backbone.timm_model.")),
        ("detector.pth", lambda weights: {"neck.weight": torch.ones(1), **prefixed("backbone.")(weights)}),
    ],
)
def test_a_train_form_file_loads_into_either_form(
    file: str, wrap: "Callable[..., Any] | None", inference_mode: bool, tmp_path: Path
) -> None:
    model, path = trained(), tmp_path / file
    weights = model.state_dict()
    if wrap is None:
        timm_file(path, weights)
    elif path.suffix == ".safetensors":
        safetensors.torch.save_file(wrap(weights), path)
    else:
        torch.save(wrap(weights), path)
    loaded = timm.create_model(NAME, inference_mode=inference_mode)
    rdpnet_timm.load_checkpoint(loaded, path)
    torch.testing.assert_close(outputs(loaded), outputs(model), rtol=1e-4, atol=1e-4)


def test_timms_checkpoint_path_and_plain_load_state_dict_convert_as_well(tmp_path: Path) -> None:
    model = trained()
    path = timm_file(tmp_path / "last.pth.tar", model.state_dict())
    by_timm = timm.create_model(NAME, inference_mode=True, checkpoint_path=str(path))
    by_torch = timm.create_model(NAME, inference_mode=True)
    by_torch.load_state_dict(model.state_dict())
    nested = nn.ModuleDict({"backbone": timm.create_model(NAME, inference_mode=True)})
    nested.load_state_dict(prefixed("backbone.")(model.state_dict()))
    converted = rdpnet_timm.reparameterize(timm.create_model(NAME))
    converted.load_state_dict(model.state_dict())
    for loaded in (by_timm, by_torch, nested["backbone"], converted):
        torch.testing.assert_close(outputs(loaded), outputs(model), rtol=1e-4, atol=1e-4)


def test_averaged_weights_are_preferred_and_can_be_declined(tmp_path: Path) -> None:
    raw, ema = trained(seed=1), trained(seed=2)
    path = timm_file(tmp_path / "last.pth.tar", raw.state_dict(), ema.state_dict())
    for use_ema, expected in ((True, ema), (False, raw)):
        model = timm.create_model(NAME)
        rdpnet_timm.load_checkpoint(model, path, use_ema)
        assert torch.equal(outputs(model), outputs(expected))


def test_the_raw_weights_beside_mmengines_averaged_ones_are_read_when_asked_for(tmp_path: Path) -> None:
    hooks = pytest.importorskip("mmengine.hooks")
    raw, averaged, hook = trained(seed=1), trained(seed=2), hooks.EMAHook()
    hook.ema_model = nn.ModuleDict({"module": nn.ModuleDict({"backbone": averaged})})
    checkpoint = {"meta": {"mmengine_version": "0.10"}, "state_dict": nn.ModuleDict({"backbone": raw}).state_dict()}
    hook.before_save_checkpoint(None, checkpoint)
    torch.save(checkpoint, tmp_path / "epoch_1.pth")
    for use_ema, expected in ((True, averaged), (False, raw)):
        model = timm.create_model(NAME)
        rdpnet_timm.load_checkpoint(model, tmp_path / "epoch_1.pth", use_ema)
        assert torch.equal(outputs(model), outputs(expected))


def test_averaged_weights_are_found_under_the_names_of_other_trainers(tmp_path: Path) -> None:
    raw, averaged = trained(seed=1), trained(seed=2)
    torchs = torch.optim.swa_utils.AveragedModel(averaged)
    for content in (
        {"state_dict": raw.state_dict(), "ema_state_dict": averaged.state_dict()},
        {"model": raw.state_dict(), "model_ema": torchs.state_dict()},  # torchvision's reference script
    ):
        torch.save(content, tmp_path / "last.pth")
        for use_ema, expected in ((True, averaged), (False, raw)):
            model = timm.create_model(NAME)
            rdpnet_timm.load_checkpoint(model, tmp_path / "last.pth", use_ema)
            assert torch.equal(outputs(model), outputs(expected))


@pytest.mark.parametrize(
    "args",
    [
        dict(input_size=32, nb_classes=7, drop_path=0.1),  # DeiT's script
        dict(mean=0.5, std=0.25),
        dict(gp=True, num_classes="7"),
        dict(img_size=[32, 32], interpolation=3),
        dict(model_kwargs="x"),
    ],
    ids=lambda args: next(iter(args)),
)
def test_options_of_another_script_than_timms_are_not_taken_for_its(args: Dict[str, Any], tmp_path: Path) -> None:
    model = trained()
    content = {"model": model.state_dict(), "args": argparse.Namespace(model=NAME, **args)}
    torch.save(content, tmp_path / "last.pth")
    loaded = load_model(tmp_path / "last.pth", NAME)
    assert torch.equal(outputs(loaded), outputs(model))
    own = timm.create_model(NAME).pretrained_cfg
    assert all(loaded.pretrained_cfg[name] == own[name] for name in ("input_size", "mean", "std", "interpolation"))


def test_another_pooling_is_refused_as_other_strides_are(tmp_path: Path) -> None:
    path, most = tmp_path / "max.safetensors", timm.create_model(NAME, global_pool="max")
    save_model(most, path, NAME, {"global_pool": "max"})
    with pytest.raises(RuntimeError, match=r"global_pool='max', and this model has 'avg': the shapes agree"):
        rdpnet_timm.load_checkpoint(timm.create_model(NAME), path)
    for same in ("max", "fastmax"):
        rdpnet_timm.load_checkpoint(timm.create_model(NAME, global_pool=same), path)
    assert torch.equal(outputs(load_model(path)), outputs(most))
    load_model(path, num_classes=0, global_pool="")  # there is no classifier to be misled


def test_what_a_file_says_of_its_pictures_comes_with_its_weights(tmp_path: Path) -> None:
    overlay = dict(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), label_names=("a",))
    save_model(trained(), tmp_path / "a.safetensors", NAME, {"pretrained_cfg_overlay": overlay})
    model = timm.create_model(NAME)
    rdpnet_timm.load_checkpoint(model, tmp_path / "a.safetensors")
    assert model.pretrained_cfg["mean"] == overlay["mean"] and model.pretrained_cfg["std"] == overlay["std"]
    assert model.pretrained_cfg.get("label_names") is None


def test_a_backbone_is_loaded_from_a_file_without_its_classifier(tmp_path: Path) -> None:
    model, path, x = trained(), tmp_path / "a.safetensors", torch.randn(1, 3, 32, 32)
    save_model(model, path, NAME, {})
    backbone = load_model(path, num_classes=0).eval()
    with torch.no_grad():
        torch.testing.assert_close(backbone(x), model.eval().forward_head(model.forward_features(x), pre_logits=True))
        with pytest.raises(ValueError, match=r"features_only=True .* timm\.models\.FeatureListNet\(load_model"):
            load_model(path, features_only=True)
        wrapped = timm.models.FeatureListNet(load_model(path), out_indices=(2, 3), flatten_sequential=True).eval()
        for found, expected in zip(wrapped(x), model.forward_intermediates(x, intermediates_only=True)[2:4]):
            torch.testing.assert_close(found, expected)


def test_weights_in_half_precision_are_not_rounded_to_it_again_when_merged() -> None:
    model = trained()
    halves = {name: t.half() if t.is_floating_point() else t for name, t in model.state_dict().items()}
    model.load_state_dict(halves)
    deployed = timm.create_model(NAME, inference_mode=True)
    deployed.load_state_dict(halves)
    # in float64: what is left is the rounding of the merged kernels to float32, half precision would cost 1e-4 and more
    x = torch.linspace(-1, 1, 2 * 3 * 32 * 32, dtype=torch.float64).reshape(2, 3, 32, 32)
    with torch.no_grad():
        expected, found = (network.double().eval()(x) for network in (model, deployed))
    assert (found - expected).abs().max() < 1e-6 * expected.abs().max()


@pytest.mark.parametrize("inference_mode", [False, True], ids=["train", "deploy"])
def test_half_precision_of_everything_is_read_though_its_count_of_steps_overflows(
    inference_mode: bool, tmp_path: Path
) -> None:
    weights = trained().state_dict()
    counts = {name: torch.tensor(78000) for name in weights if name.endswith("num_batches_tracked")}
    torch.save({name: tensor.half() for name, tensor in {**weights, **counts}.items()}, tmp_path / "half.pth")
    model, expected = (timm.create_model(NAME, inference_mode=inference_mode) for _ in range(2))
    rdpnet_timm.load_checkpoint(model, tmp_path / "half.pth")
    expected.load_state_dict({n: t.half() if t.is_floating_point() else t for n, t in weights.items()})
    assert torch.equal(outputs(model), outputs(expected))


def test_a_model_is_made_from_a_file_with_the_arguments_that_its_weights_show(tmp_path: Path) -> None:
    model = trained(num_classes=3, in_chans=1, pointwise_identity=True, shuffle_groups=4)
    path = timm_file(tmp_path / "last.pth.tar", model.state_dict(), shuffle_groups=4)
    loaded = load_model(path)
    assert loaded.num_classes == 3 and loaded.in_chans == 1
    assert rdpnet_timm.verify(model, loaded).max_difference == 0
    single = trained(num_classes=3, single_branch=True)
    assert rdpnet_timm.verify(single, load_model(timm_file(path, single.state_dict()))).max_difference == 0
    with pytest.raises(FileNotFoundError, match=r"rdpnet_999.*list_models"):
        load_model("rdpnet_999")


def test_a_name_gives_its_pretrained_weights_and_random_ones_only_when_asked(tmp_path: Path) -> None:
    shipped = timm.create_model(NAME, pretrained=True)
    for name in (NAME, f"{NAME}.c10"):
        assert torch.equal(outputs(load_model(name)), outputs(shipped)), name
    for name in ("rdpnet_100", "rdpnet_075_cifar"):
        with pytest.raises(ValueError, match=rf"no pretrained weights for '{name}'.*--random-weights"):
            load_model(name)
        assert load_model(name, random_weights=True, num_classes=7).num_classes == 7
    assert not torch.equal(outputs(load_model(NAME, random_weights=True)), outputs(shipped))
    model = trained(num_classes=6)
    timm.models.save_for_hf(model, tmp_path / "nodot")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert torch.equal(outputs(load_model("local-dir:nodot")), outputs(model))


def test_a_name_and_a_file_that_contradict_what_else_is_said_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"'{NAME}' is a model and rdpnet_150 \(--model\) another"):
        load_model(NAME, "rdpnet_150")
    assert torch.equal(outputs(load_model(f"{NAME}.c10", NAME)), outputs(load_model(NAME)))
    with pytest.raises(FileNotFoundError, match=r"none.pth"):
        load_model("none.pth", NAME)
    with pytest.raises(ValueError, match=r"has weights, and random ones were asked for"):
        load_model(timm_file(tmp_path / "last.pth.tar", trained().state_dict()), random_weights=True)


@pytest.mark.parametrize("written", ["args", "weights alone"])
def test_another_networks_classes_are_read_from_its_checkpoint(written: str, tmp_path: Path) -> None:
    model = timm.create_model("resnet10t", num_classes=10, in_chans=1 if written == "args" else 3)
    namespace = argparse.Namespace(model="resnet10t", num_classes=10, in_chans=1, model_kwargs={})
    content = {"arch": "resnet10t", "state_dict": model.state_dict()}
    torch.save({**content, "args": namespace} if written == "args" else content, tmp_path / "last.pth.tar")
    loaded = load_model(tmp_path / "last.pth.tar")
    assert loaded.num_classes == 10 and torch.equal(loaded.fc.weight, model.fc.weight)
    with pytest.raises(ValueError, match=r"of resnet10t, and resnet18 was named"):
        load_model(tmp_path / "last.pth.tar", "resnet18")


def test_weights_for_small_images_do_not_go_into_a_network_for_large_ones(tmp_path: Path) -> None:
    small, large = trained(num_classes=10), timm.create_model("rdpnet_025", num_classes=10)
    save_model(small, tmp_path / "small.safetensors", NAME, {"num_classes": 10})
    save_model(large, tmp_path / "large.pth", "rdpnet_025", {"num_classes": 10})
    save_model(large, tmp_path / "strided.pth", "rdpnet_025", {"num_classes": 10, "strides": [1, 1, 2, 2, 2]})
    for model, file in ((large, "small.safetensors"), (small, "large.pth"), (large, "strided.pth")):
        with pytest.raises(RuntimeError, match=r"strides.*timm\.create_model"):
            rdpnet_timm.load_checkpoint(model, tmp_path / file)
    with pytest.raises(ValueError, match="of rdpnet_025_cifar, and rdpnet_025 was named"):
        load_model(tmp_path / "small.safetensors", "rdpnet_025")
    plain = tmp_path / "plain.safetensors"  # no word in the file, but a card beside it
    safetensors.torch.save_file(small.state_dict(), plain)
    with pytest.raises(ValueError, match="does not say"):
        load_model(plain)
    plain.with_suffix(".json").write_text(json.dumps({"model": NAME, "sha256": sha256(plain)}))
    assert torch.equal(outputs(load_model(plain)), outputs(small))
    with pytest.raises(RuntimeError, match="strides"):
        rdpnet_timm.load_checkpoint(large, plain)
    plain.with_suffix(".json").write_text(json.dumps({"model": NAME, "sha256": "of another file"}))
    with pytest.raises(ValueError, match="does not say"):
        load_model(plain)
    tagged = tmp_path / "tagged.safetensors"
    save_model(small, tagged, f"{NAME}.digits", {"num_classes": 10})
    with pytest.raises(RuntimeError, match="strides"):
        rdpnet_timm.load_checkpoint(large, tagged)
    rdpnet_timm.load_checkpoint(small, tagged)
    dilated = timm.create_model(NAME, output_stride=8)
    rdpnet_timm.load_checkpoint(dilated, tmp_path / "small.safetensors")


def test_weights_of_another_shuffle_are_refused(tmp_path: Path) -> None:
    plain, shuffled, path = trained(shuffle_groups=0), trained(), tmp_path / "plain.safetensors"
    save_model(plain, path, NAME, {"shuffle_groups": 0})
    with pytest.raises(RuntimeError, match="shuffle_groups=0, and this model has 2"):
        rdpnet_timm.load_checkpoint(shuffled, path)
    with pytest.raises(RuntimeError, match="shuffle_groups=0, and this model has 4"):
        load_model(path, shuffle_groups=4)
    rdpnet_timm.load_checkpoint(timm.create_model(NAME, shuffle_groups=1), path)
    convert_checkpoint(path, tmp_path / "deployed.pth")
    merged = timm.create_model(NAME, inference_mode=True)  # the weights hold what shuffle there was
    rdpnet_timm.load_checkpoint(merged, tmp_path / "deployed.pth")
    torch.testing.assert_close(outputs(merged), outputs(plain))


def test_what_timms_train_script_was_told_of_pooling_and_pictures_is_kept(tmp_path: Path) -> None:
    model = trained(num_classes=4, global_pool="catavgmax")
    told = dict(
        num_classes=4, in_chans=None, gp="catavgmax", mean=[0.5], std=[0.2, 0.3, 0.4], img_size=40, crop_pct=0.9
    )
    script = argparse.Namespace(model=NAME, model_kwargs={}, interpolation="", input_size=None, **told)
    torch.save({"arch": NAME, "state_dict": model.state_dict(), "args": script}, tmp_path / "last.pth.tar")
    convert_checkpoint(tmp_path / "last.pth.tar", tmp_path / "deployed.safetensors")
    for name in ("last.pth.tar", "deployed.safetensors"):
        loaded = load_model(tmp_path / name)
        torch.testing.assert_close(outputs(loaded), outputs(model), rtol=1e-3, atol=1e-3)
        config = timm.data.resolve_model_data_config(loaded)
        assert config["input_size"] == (3, 40, 40) and config["crop_pct"] == 0.9
        assert config["interpolation"] == "bicubic"
        assert [*config["mean"], *config["std"]] == [0.5, 0.5, 0.5, 0.2, 0.3, 0.4]


def test_a_checkpoint_of_our_trainer_says_its_model_and_its_averaged_weights(tmp_path: Path) -> None:
    raw, averaged = trained(shuffle_groups=0), trained(seed=1, shuffle_groups=0)
    description = {"model": NAME, "model_args": {"shuffle_groups": 0, "pretrained": True}, "seed": 0}
    parts = {"model": raw.state_dict(), "ema": prefixed("module.")(averaged.state_dict()), "step": 3}
    torch.save({**parts, "description": description}, tmp_path / "checkpoint.pt")
    for use_ema, expected in ((True, averaged), (False, raw)):
        assert torch.equal(outputs(load_model(tmp_path / "checkpoint.pt", use_ema=use_ema)), outputs(expected))


def test_the_training_state_that_mmengine_stores_is_read_without_mmengine(tmp_path: Path) -> None:
    pytest.importorskip("mmengine")
    write = """
import sys, numpy, torch
from mmengine.logging import HistoryBuffer
history = HistoryBuffer(numpy.ones(3), numpy.ones(3))
torch.save({"message_hub": {"log_scalars": {"train/loss": history}, "runtime_info": {"iter": numpy.int64(3)}},
            "state_dict": {"backbone.weight": torch.ones(2)}}, sys.argv[1])
"""
    read = """
import sys
from rdpnet_timm.weights.reading import read_checkpoint
assert read_checkpoint(sys.argv[1]).state_dict["weight"].tolist() == [1, 1]
assert "mmengine" not in sys.modules
import torch, rdpnet_timm.openmmlab  # which lets mmengine itself read it
for _ in range(2):
    assert read_checkpoint(sys.argv[1]).state_dict["weight"].tolist() == [1, 1]
    assert torch.load(sys.argv[1], weights_only=True)["message_hub"]["runtime_info"]["iter"] == 3
"""
    for program in (write, read):
        subprocess.run([sys.executable, "-c", program, tmp_path / "epoch_1.pth"], check=True, timeout=300)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_the_names_of_the_classes_stay_with_the_weights(suffix: str, tmp_path: Path) -> None:
    names = ("cat", "dog", "owl")
    source, output = tmp_path / f"trained{suffix}", tmp_path / f"deployed{suffix}"
    save_model(trained(num_classes=3), source, NAME, {}, names)
    convert_checkpoint(source, output)
    for path in (source, output):
        assert load_model(path).pretrained_cfg["label_names"] == names
    assert load_model(NAME).pretrained_cfg["label_names"][:2] == ("airplane", "automobile")
    unnamed = tmp_path / f"unnamed{suffix}"  # ten classes like CIFAR-10's, but who knows which
    save_model(trained(), unnamed, NAME, {})
    assert load_model(unnamed).pretrained_cfg["label_names"] is None
    assert load_model(NAME, random_weights=True).pretrained_cfg["label_names"] is None
    into = timm.create_model(NAME, pretrained=True, num_classes=3)
    rdpnet_timm.load_checkpoint(into, source)
    assert into.pretrained_cfg["label_names"] == names


def test_no_classifier_bears_the_names_and_the_accuracy_of_weights_that_it_does_not_have(tmp_path: Path) -> None:
    told = ("label_names", "description", "tag")
    digits = str(weights.FOLDER / f"{NAME}.digits.safetensors")  # of ten classes too
    cleared = timm.create_model(NAME, pretrained=True)
    assert all(cleared.pretrained_cfg[part] for part in told)
    cleared.reset_classifier(10)
    for model in (
        timm.create_model(NAME),
        timm.create_model(NAME, checkpoint_path=digits),
        timm.create_model(f"{NAME}.c100", num_classes=100),
        timm.create_model(NAME, pretrained=True, num_classes=3),
        timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=dict(file=digits)),
        cleared,
    ):
        assert not any(model.pretrained_cfg.get(part) for part in told)
        assert not any(model.default_cfg.get(part) for part in told), "timm's former name of the same"
    mine = timm.create_model(NAME, checkpoint_path=digits, pretrained_cfg_overlay=dict(label_names=("a",) * 10))
    assert mine.pretrained_cfg["label_names"] == ("a",) * 10
    assert load_model(digits).pretrained_cfg["label_names"] == tuple("0123456789")


@pytest.mark.parametrize("text", ["epoch,loss\n1,2.3\n", "e" * 300, "\x80\x02}q.", "(dp0\nS'x'\n"])
def test_a_text_file_is_no_checkpoint_and_says_so_in_a_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "summary.pth").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"summary\.pth' (is not a whole|holds more than)"):
        read_checkpoint(tmp_path / "summary.pth")


@pytest.mark.parametrize("told", ["none", "[1]", '["ab"]', "3", '{"num_classes": '])
def test_model_args_that_are_none_are_named_with_their_file(told: str, tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    safetensors.torch.save_file({"weight": torch.zeros(2)}, path, {"model_args": told})
    with pytest.raises(ValueError, match=rf"file\.safetensors': its entry model_args .*{re.escape(repr(told))}"):
        read_checkpoint(path)


class Code:
    def __reduce__(self) -> Any:
        return print, ("code ran",)


def corrupt(kind: str, path: Path) -> None:
    weights = trained().state_dict()
    if kind == "truncated":
        torch.save(weights, path)
        path.write_bytes(path.read_bytes()[:-2000])
    elif kind == "truncated.safetensors":
        safetensors.torch.save_file(weights, path)
        path.write_bytes(path.read_bytes()[:-2000])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("not a checkpoint")
    elif kind == "code":
        torch.save({"state_dict": weights, "extra": Code()}, path)
    elif kind == "old pickle with code":
        path.write_bytes(pickle.dumps(Code()))
    elif kind == "nan":
        weights["stages.2.3.point.branches.conv1x1_a.conv.weight"][0] = float("nan")
        torch.save(weights, path)
    elif kind == "no weights":
        torch.save({"epoch": 3}, path)
    elif kind == "wrong width":
        torch.save(trained("rdpnet_050_cifar").state_dict(), path)
    elif kind == "missing":
        del weights["stages.3.0.depth.branches.conv3x3.norm.running_var"]
        torch.save(weights, path)
    elif kind == "unknown":
        torch.save({**weights, "extra.weight": torch.ones(1)}, path)
    elif kind == "classes":
        torch.save(trained(num_classes=7).state_dict(), path)


@pytest.mark.parametrize("inference_mode", [False, True], ids=["train", "deploy"])
@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("truncated", ValueError, "not a whole checkpoint"),
        ("truncated.safetensors", ValueError, "not a whole safetensors file"),
        ("empty", ValueError, "not a whole checkpoint"),
        ("text", ValueError, "holds more than weights, or is damaged"),
        ("code", ValueError, "code in a file is never run"),
        ("old pickle with code", ValueError, "code in a file is never run"),
        ("nan", ValueError, r"NaN.*'stages\.2\.3\.point\.branches\.conv1x1_a\.conv\.weight'"),
        ("no weights", ValueError, "expected a state dict"),
        ("wrong width", RuntimeError, r"\(32, .*\(16, |32.*16"),
        ("missing", RuntimeError, r"stages\.3\.0\.|running_var"),
        ("unknown", RuntimeError, r"extra\.weight"),
        ("classes", RuntimeError, r"\(7, 320\).*\(10, 320\)"),
    ],
)
def test_a_bad_file_is_an_error_that_says_why_and_leaves_the_model_whole(
    kind: str, error: Any, message: str, inference_mode: bool, tmp_path: Path, capfd: Any
) -> None:
    path = tmp_path / ("file.safetensors" if kind.endswith("safetensors") else "file.pth")
    corrupt(kind, path)
    model = timm.create_model(NAME, inference_mode=inference_mode)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(error, match=message):
        rdpnet_timm.load_checkpoint(model, path)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert "code ran" not in capfd.readouterr().out


@pytest.mark.parametrize("features_only", [False, True])
def test_deploy_form_weights_do_not_go_back_into_a_train_form_model(features_only: bool, tmp_path: Path) -> None:
    model = timm.create_model(NAME, features_only=features_only)
    weights = rdpnet_timm.reparameterize(model).state_dict()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(RuntimeError, match=r"merged for good.*inference_mode=True"):
        model.load_state_dict(weights)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_another_width_is_refused_before_anything_is_copied() -> None:
    model = timm.create_model("rdpnet_125")  # its stem has the same shape as that of the other
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(RuntimeError, match=r"stages\.0\.0.*\(96, .*\(80, "):
        model.load_state_dict(timm.create_model("rdpnet_150").state_dict())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pth.tar"])
def test_a_converted_file_says_what_it_holds_and_loads_everywhere(suffix: str, tmp_path: Path) -> None:
    model = trained(num_classes=4)
    source, output = timm_file(tmp_path / "last.pth.tar", model.state_dict()), tmp_path / f"deployed{suffix}"
    verification = convert_checkpoint(source, output)
    assert verification.relative <= 1e-5
    assert not any("branches" in name for name in read_checkpoint(output).state_dict)
    by_timm = timm.create_model(NAME, num_classes=4, inference_mode=True, checkpoint_path=str(output))
    for loaded in (load_model(output), by_timm):
        torch.testing.assert_close(outputs(loaded), outputs(model), rtol=1e-4, atol=1e-4)
    assert sorted(tmp_path.iterdir()) == sorted([source, output]), "no temporary file is left"


def test_conversion_never_replaces_a_file_unasked_and_never_its_source(tmp_path: Path) -> None:
    source, output = timm_file(tmp_path / "last.pth", trained().state_dict()), tmp_path / "deployed.pth"
    output.write_text("precious")
    with pytest.raises(FileExistsError, match="--overwrite"):
        convert_checkpoint(source, output)
    assert output.read_text() == "precious"
    with pytest.raises(FileExistsError, match="another name"):
        convert_checkpoint(source, source, overwrite=True)
    convert_checkpoint(source, output, overwrite=True)
    with pytest.raises(ValueError, match="already"):
        convert_checkpoint(output, tmp_path / "again.pth")
    with pytest.raises(ValueError, match=r"\.safetensors.*got 'deployed\.onnx'"):
        convert_checkpoint(source, tmp_path / "deployed.onnx")
    with pytest.raises(OSError, match="absent"):
        convert_checkpoint(source, tmp_path / "absent" / "deployed.pth")
    with pytest.raises(RuntimeError, match="not the same function"):
        convert_checkpoint(source, tmp_path / "strict.pth", tolerance=1e-30)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deployed.pth", "last.pth"]


def test_a_file_that_does_not_name_its_model_needs_the_name(tmp_path: Path) -> None:
    torch.save(trained().state_dict(), tmp_path / "plain.pth")
    with pytest.raises(ValueError, match="rdpnet_025 and rdpnet_025_cifar"):
        convert_checkpoint(tmp_path / "plain.pth", tmp_path / "out.pth")
    assert convert_checkpoint(tmp_path / "plain.pth", tmp_path / "out.pth", model=NAME).input_shape == (2, 3, 32, 32)


def test_other_reparameterisable_models_convert_too(tmp_path: Path) -> None:
    model = trained("repghostnet_050", num_classes=2)
    torch.save(model.state_dict(), tmp_path / "peer.pth")  # of which only the classifier's shape tells the classes
    assert convert_checkpoint(tmp_path / "peer.pth", tmp_path / "out.pth", "repghostnet_050").relative <= 1e-5
    assert read_checkpoint(tmp_path / "out.pth").state_dict["classifier.weight"].shape[0] == 2
    save_model(model, tmp_path / "peer.safetensors", "repghostnet_050", {"num_classes": 2})
    assert convert_checkpoint(tmp_path / "peer.safetensors", tmp_path / "out2.pth").relative <= 1e-5
    torch.testing.assert_close(outputs(load_model(tmp_path / "out2.pth")), outputs(model))
    save_model(trained("mobileone_s0", num_classes=2), tmp_path / "one.pth", "mobileone_s0", {"num_classes": 2})
    convert_checkpoint(tmp_path / "one.pth", tmp_path / "out3.pth")
    assert load_model(tmp_path / "out3.pth").num_classes == 2
    save_model(trained("resnet10t"), tmp_path / "plain.pth", "resnet10t", {})
    with pytest.raises(ValueError, match=r"resnet10t.*nothing to merge"):
        convert_checkpoint(tmp_path / "plain.pth", tmp_path / "out4.pth")


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
