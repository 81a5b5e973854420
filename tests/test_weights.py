"""The weights that come with the package: they load by timm, offline, and are as good as their cards say."""

import json
import shutil
import socket

import pytest
import timm
import torch
from safetensors.torch import load_file

import rdpnet_timm
from rdpnet_timm import weights

NAMES = weights.names()
DIGITS = "rdpnet_025_cifar.digits"


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_small_whole_and_described_by_its_card(name):
    path, card = weights.FOLDER / f"{name}.safetensors", weights.card(name)
    assert path.stat().st_size <= 3_000_000
    assert card["sha256"] == weights.sha256(path)
    told = {"recipe", "epochs", "seed", "accuracy_train_form", "accuracy_deploy_form", "data", "date", "classes"}
    assert told <= set(card) and card["model"] == name.split(".")[0]
    tensors = load_file(path)
    dtypes = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    assert dtypes == {getattr(torch, card["precision"])}
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert any(".branches." in key for key in tensors)  # the train form, which can be trained on


@pytest.mark.parametrize("name", NAMES)
def test_timm_lists_the_weights(name):
    assert name in timm.list_models("rdpnet*", pretrained=True)
    assert name.split(".")[0] in timm.list_pretrained("rdpnet*") or name in timm.list_pretrained("rdpnet*")


@pytest.mark.parametrize("name", NAMES)
def test_the_model_has_the_cards_classes_and_the_files_weights(name):
    model = timm.create_model(name, pretrained=True)
    assert model.num_classes == len(weights.card(name)["classes"])
    for key, tensor in load_file(weights.FOLDER / f"{name}.safetensors").items():
        assert torch.equal(model.state_dict()[key], tensor.to(model.state_dict()[key].dtype)), key


@pytest.mark.parametrize("name", ["rdpnet_025_cifar", "rdpnet_050_cifar"])
def test_the_bare_name_stands_for_the_weights_of_cifar(name):
    model = timm.create_model(name, pretrained=True)
    assert model.pretrained_cfg["tag"] == "c10"
    assert model.pretrained_cfg["mean"] == pytest.approx((0.4914, 0.4822, 0.4465))
    for key, tensor in load_file(weights.FOLDER / f"{name}.c10.safetensors").items():
        assert torch.equal(model.state_dict()[key], tensor.to(model.state_dict()[key].dtype)), key


def test_a_model_without_weights_says_so():
    with pytest.raises(RuntimeError, match="no pretrained weights for rdpnet_075_cifar"):
        timm.create_model("rdpnet_075_cifar", pretrained=True)


def test_the_shipped_weights_reach_the_accuracy_on_their_card_in_both_forms():
    from rdpnet_timm.train import read_data

    _, test = read_data("digits")
    card = weights.card(DIGITS)
    model = timm.create_model(DIGITS, pretrained=True).eval()
    mean, std = (torch.tensor(model.pretrained_cfg[name]).reshape(1, 3, 1, 1) for name in ("mean", "std"))
    x = (test.pixels.permute(0, 3, 1, 2) / 255 - mean) / std
    loaded_deployed = timm.create_model(DIGITS, pretrained=True, inference_mode=True).eval()
    accuracies = []
    with torch.no_grad():
        for form in (model, rdpnet_timm.reparameterize(model), loaded_deployed):
            accuracies.append(100 * (form(x).argmax(1) == test.labels).double().mean().item())
    assert accuracies == pytest.approx([card["accuracy_train_form"]] + 2 * [card["accuracy_deploy_form"]])
    assert card["test_images"] == len(test) and card["accuracy_train_form"] > 90


def test_the_deploy_form_loaded_directly_is_the_converted_one():
    converted = rdpnet_timm.reparameterize(timm.create_model(DIGITS, pretrained=True))
    loaded = timm.create_model(DIGITS, pretrained=True, inference_mode=True)
    for name, tensor in converted.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("inference_mode", [False, True])
def test_another_number_of_classes_leaves_the_classifier_out(inference_mode):
    model = timm.create_model(DIGITS, pretrained=True, num_classes=3, inference_mode=inference_mode)
    whole = timm.create_model(DIGITS, pretrained=True, inference_mode=inference_mode)
    assert model.head.weight.shape == (3, 320)
    same = [
        torch.equal(tensor, whole.state_dict()[name])
        for name, tensor in model.state_dict().items()
        if "head" not in name
    ]
    assert all(same)


@pytest.mark.parametrize("inference_mode", [False, True])
def test_one_input_channel_gets_the_sum_of_the_three_and_sees_what_they_saw(inference_mode):
    model = timm.create_model(DIGITS, pretrained=True, in_chans=1, inference_mode=inference_mode).eval()
    whole = timm.create_model(DIGITS, pretrained=True, inference_mode=inference_mode).eval()
    grey = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(grey), whole(grey.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("inference_mode", [False, True])
def test_a_feature_extractor_has_the_weights_too(inference_mode):
    features = timm.create_model(DIGITS, pretrained=True, features_only=True, inference_mode=inference_mode).eval()
    whole = timm.create_model(DIGITS, pretrained=True, inference_mode=inference_mode).eval()
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(features(x)[-1], whole.forward_features(x))


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"shuffle_groups": 0}, "shuffle_groups=2, and this model has 0"),
        ({"shuffle_groups": 4, "features_only": True}, "shuffle_groups=2, and this model has 4"),
        ({"strides": (1, 1, 2, 2, 1)}, r"strides \(1, 1, 2, 2, 2\), and this model has \(1, 1, 2, 2, 1\)"),
        ({"single_branch": True}, "network with branches.*without single_branch"),
        ({"single_branch": True, "inference_mode": True}, "network with branches.*without single_branch"),
    ],
)
def test_a_network_of_another_function_does_not_get_the_weights(told, message):
    with pytest.raises(RuntimeError, match=message):
        timm.create_model("rdpnet_025_cifar", pretrained=True, **told)


def test_weights_of_single_branches_are_adapted_to_one_channel_as_others_are(tmp_path):
    source = timm.create_model("rdpnet_025_cifar", single_branch=True)
    torch.save(source.state_dict(), tmp_path / "own.pth")
    told = {"pretrained_cfg_overlay": {"file": str(tmp_path / "own.pth")}, "single_branch": True}
    grey = timm.create_model("rdpnet_025_cifar", pretrained=True, in_chans=1, **told)
    kernels = [model.stem.branches.conv3x3.conv.weight for model in (grey, source)]
    torch.testing.assert_close(kernels[0], kernels[1].sum(1, keepdim=True))


def test_a_damaged_file_is_an_error_that_names_both_sums(tmp_path, monkeypatch):
    for suffix in ("safetensors", "json"):
        shutil.copy(weights.FOLDER / f"{DIGITS}.{suffix}", tmp_path)
    path = tmp_path / f"{DIGITS}.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    expected = json.loads((tmp_path / f"{DIGITS}.json").read_text())["sha256"]
    with pytest.raises(RuntimeError, match=f"are damaged: their SHA-256 sum is {weights.sha256(path)}.*{expected}"):
        timm.create_model("rdpnet_025_cifar", pretrained=True, pretrained_cfg_overlay=dict(file=str(path)))
    path.unlink()
    with pytest.raises(RuntimeError, match="are not there with their card"):
        timm.create_model("rdpnet_025_cifar", pretrained=True, pretrained_cfg_overlay=dict(file=str(path)))


def test_a_file_of_ones_own_is_compared_with_the_model_too(tmp_path):
    path = tmp_path / "mine.safetensors"
    shutil.copy(weights.FOLDER / f"{DIGITS}.safetensors", path)
    mine = dict(pretrained=True, num_classes=10, pretrained_cfg_overlay=dict(file=str(path), num_classes=10))
    with pytest.raises(RuntimeError, match=r"mine.* the shapes agree, the function does not"):
        timm.create_model("rdpnet_025", **mine)
    with pytest.raises(RuntimeError, match="shuffle_groups=2, and this model has 4"):
        timm.create_model("rdpnet_025_cifar", shuffle_groups=4, **mine)
    found, expected = timm.create_model("rdpnet_025_cifar", **mine), timm.create_model(DIGITS, pretrained=True)
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in found.state_dict().items())


def test_a_model_without_weights_says_what_can_be_done():
    with pytest.raises(RuntimeError, match=r"no pretrained weights for rdpnet_150_cifar yet.*checkpoint_path"):
        timm.create_model("rdpnet_150_cifar", pretrained=True)


def test_a_wider_models_own_file_loads_by_checkpoint_path(tmp_path):
    from rdpnet_timm.checkpoint import save_model

    torch.manual_seed(0)
    trained = timm.create_model("rdpnet_050_cifar")
    save_model(trained, tmp_path / "weights.safetensors", "rdpnet_050_cifar", {"num_classes": 10})
    for inference_mode in (False, True):
        loaded = timm.create_model(
            "rdpnet_050_cifar", checkpoint_path=str(tmp_path / "weights.safetensors"), inference_mode=inference_mode
        )
        assert rdpnet_timm.verify(trained, loaded).relative < 1e-5
