import pytest
import timm
import torch

from rdpnet_timm import RDPNet, reparameterize
from rdpnet_timm.deploy.normalize import BORDERS, fold_normalization
from rdpnet_timm.measure.difference import randomize_norms

MEAN, STD = (0.49, 0.2, 0.7), (0.25, 0.1, 0.4)


def normalized(pixels, white):
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (MEAN, STD))
    return (pixels / white - mean) / std


@pytest.mark.parametrize("white", [1, 255])
@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("strides", [(1, 1, 2, 2, 2), (2, 2, 2, 2, 2)])
def test_folded_normalisation_is_exact_up_to_the_border(border, white, strides):
    # the map, so that no border can hide in a mean
    model = randomize_norms(RDPNet(0.25, strides=strides, num_classes=0, global_pool="").double())
    deployed = reparameterize(model).eval()
    pixels = torch.rand(2, 3, 23, 17, generator=torch.Generator().manual_seed(3)).double() * white
    with torch.no_grad():
        expected = deployed(normalized(pixels, white))
        folded = fold_normalization(deployed, MEAN, STD, white, border, (23, 17))(pixels)
    assert ((folded - expected).abs().max() / expected.abs().max()).item() < 1e-12


@pytest.mark.parametrize("border", BORDERS)
def test_a_first_convolution_of_groups_is_folded_too(border):
    path = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3, padding=1, groups=3), torch.nn.ReLU()).double().eval()
    pixels = torch.rand(2, 3, 9, 7).double()
    with torch.no_grad():
        expected, folded = path(normalized(pixels, 1)), fold_normalization(path, MEAN, STD, border=border, size=(9, 7))
        assert torch.allclose(folded(pixels), expected, rtol=1e-12)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["rdpnet_025_cifar", "resnet10t"])
def test_what_normalises_is_in_the_mode_of_the_model(name, training):
    model = reparameterize(timm.create_model(name)).train(training)
    assert {module.training for module in fold_normalization(model, MEAN, STD).modules()} == {training}


def test_any_other_model_gets_normalisation_in_front():
    model = randomize_norms(timm.create_model("resnet10t", num_classes=4).double()).eval()
    pixels = torch.rand(1, 3, 32, 32).double()
    with torch.no_grad():
        expected, folded = model(normalized(pixels, 1)), fold_normalization(model, MEAN, STD)(pixels)
    assert ((folded - expected).abs().max() / expected.abs().max()).item() < 1e-12


def test_wrong_arguments_are_named():
    model = timm.create_model("rdpnet_025_cifar", inference_mode=True)
    with pytest.raises(ValueError, match="subtract, pad, map"):
        fold_normalization(model, MEAN, STD, border="wrap")
    with pytest.raises(ValueError, match="3 channels"):
        fold_normalization(model, (0.5,), (0.5,))
