"""Deploy forms of any network, and norms that have seen images."""

import pytest
import timm
import torch
from small_results import ENTRIES, outputs
from torch import nn

from rdpnet_timm.bench.tables import DEPLOY, PAPER_DEPLOY, TABLES, TRAIN
from rdpnet_timm.measure.forms import deploy_form, fold_norms, settle_norms
from rdpnet_timm.measure.size import count


@pytest.mark.parametrize("name", ["mobilenetv2_050", "mobileone_s0", "repghostnet_050", "starnet_s050", "shvit_s1"])
def test_the_deploy_form_of_a_peer_is_exact_and_has_no_norm_behind_a_convolution(name):
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    model = settle_norms(timm.create_model(name).double(), x)
    deployed = deploy_form(model, x)
    assert torch.allclose(outputs(deployed, x), outputs(model, x), rtol=0, atol=1e-10)
    left = sum(isinstance(module, nn.BatchNorm2d) for module in deployed.modules())
    assert left == (1 if name.startswith("starnet") else 0)  # starnet's last norm stands behind a sum


def test_a_peer_that_merges_its_branches_in_float32_has_a_deploy_form_as_exact_as_that():
    x = torch.randn(2, 3, 64, 64)
    model = settle_norms(timm.create_model("repvit_m0_9"), x)
    expected = outputs(model.double(), x.double())
    actual = outputs(deploy_form(model.float(), x).double(), x.double())
    assert (actual - expected).abs().max() < 1e-5 * expected.abs().max()


def test_a_norm_that_does_not_read_a_convolution_stays():
    for between in (nn.ReLU(inplace=True), nn.ReLU(), nn.AvgPool2d(2)):
        model = fold_norms(nn.Sequential(nn.Conv2d(3, 4, 1), between, nn.BatchNorm2d(4)), torch.randn(2, 3, 4, 4))
        assert isinstance(model[2], nn.BatchNorm2d)


def test_a_wrong_deploy_form_is_an_error():
    class ReadsTwice(nn.Module):  # the convolution's output goes to the norm and past it
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x):
            x = self.conv(x)
            return self.norm(x) + x

    x = torch.randn(2, 3, 4, 4)
    with pytest.raises(RuntimeError, match="not the network as trained: outputs differ"):
        deploy_form(settle_norms(ReadsTwice(), x), x)


def test_a_network_without_norms_is_its_own_deploy_form():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()).eval()
    assert deploy_form(model, torch.randn(1, 3, 4, 4)) is model


def test_settled_norms_have_the_statistics_of_the_images():
    model = nn.Sequential(nn.BatchNorm2d(3, momentum=0.1), nn.Conv2d(3, 4, 1))
    x = 5 + 2 * torch.randn(4, 3, 8, 8)
    settle_norms(model, x)
    assert torch.allclose(model[0].running_mean, x.mean((0, 2, 3)))
    assert torch.allclose(model[0].running_var, x.var((0, 2, 3)))
    assert model[0].momentum == 0.1 and not model[0].training


def test_the_papers_deploy_form_keeps_shuffle_and_stride_and_computes_the_same():
    table = TABLES["table8"]
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    trained = settle_norms(ENTRIES["table8", "no identity, shuffle (RDPNet)"].build().double(), x.repeat(2, 1, 1, 1))
    papers, ours = (table.forms[form](trained, x) for form in (PAPER_DEPLOY, DEPLOY))
    assert table.forms[TRAIN](trained, x) is trained
    assert torch.allclose(outputs(papers, x), outputs(trained, x), atol=1e-10)
    assert torch.allclose(outputs(ours, x), outputs(trained, x), atol=1e-10)
    assert sum(type(module).__name__ == "ChannelShuffle" for module in papers.modules()) == 20
    assert sum(type(module).__name__ == "ChannelShuffle" for module in ours.modules()) == 0
    assert count(papers.float(), (3, 32, 32)).macs > count(ours.float(), (3, 32, 32)).macs
