"""What counts as a block's way to its deploy form, in timm's networks and in others."""

from typing import Any, Dict

import pytest
import timm
import torch
from torch import Tensor, nn

from rdpnet_timm import RDPNet, reparameterize
from rdpnet_timm.blocks import RDPModule
from rdpnet_timm.convert import deploy_method


class Adder(nn.Module):
    """Has a ``fuse`` that adds up maps, as mmdet's FPG neck, and a block inside."""

    def __init__(self) -> None:
        super().__init__()
        self.block = RDPModule(4, 8)

    def fuse(self, maps: Dict[str, Tensor]) -> Tensor:
        return sum(maps.values(), torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.fuse({"a": self.block(x), "b": x.mean()})


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_fuse_that_needs_arguments_is_left_alone_and_what_lies_below_it_is_converted(wrapped: bool) -> None:
    model = (nn.Sequential(Adder()) if wrapped else Adder()).eval()
    deployed = reparameterize(model)
    assert not any("branches" in name for name, _ in deployed.named_parameters())
    x = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(deployed(x), model(x), rtol=1e-4, atol=1e-4)


def test_mmdets_fpg_neck_can_be_part_of_a_model_that_is_converted() -> None:
    pytest.importorskip("mmdet")
    from mmdet.registry import MODELS
    from mmengine.hub import get_config

    config = get_config("mmdet::fpg/faster-rcnn_r50_fpg_crop640-50e_coco.py").model.neck
    neck = MODELS.build(dict(config, _scope_="mmdet"))  # whatever scope another test has left
    with pytest.raises(TypeError, match="fuse_dict"):
        neck.fuse()
    model = nn.ModuleDict({"backbone": RDPNet(0.25, num_classes=0), "neck": neck})
    deployed = reparameterize(model)
    assert list(deployed["neck"].state_dict()) == list(neck.state_dict())
    assert not any("branches" in name for name, _ in deployed["backbone"].named_parameters())


def test_the_blocks_of_mmpretrain_are_converted() -> None:
    RepVGG = pytest.importorskip("mmpretrain.models.backbones").RepVGG
    model: Any = nn.Sequential(RepVGG("A0", out_indices=(0,))).eval()
    deployed = reparameterize(model)
    assert not any("branch_3x3" in name for name, _ in deployed.named_parameters())
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(deployed(x)[0], model(x)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["levit_128s", "repvit_m0_9", "fastvit_t8", "mobileone_s0", "repghostnet_050"])
def test_timms_networks_come_out_as_timms_own_tool_makes_them(name: str) -> None:
    model = timm.create_model(name).eval()
    x = torch.randn(1, *model.pretrained_cfg["input_size"])
    with torch.no_grad():
        ours, theirs = reparameterize(model), timm.utils.reparameterize_model(model)
        assert list(ours.state_dict()) == list(theirs.state_dict())
        assert torch.equal(ours(x), theirs(x))


def test_a_single_block_that_returns_another_module_is_replaced_by_it() -> None:
    block = timm.create_model("repvit_m0_9").stem.conv1.eval()
    deployed = reparameterize(block)
    assert type(deployed) is nn.Conv2d
    x = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(deployed(x), block(x), rtol=1e-4, atol=1e-4)


def test_a_module_without_a_deploy_form_has_no_method() -> None:
    assert deploy_method(nn.Conv2d(1, 1, 1)) is None and deploy_method(Adder()) is None
    assert deploy_method(RDPModule(4, 8)) is not None


def test_a_layer_of_that_name_is_no_method() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fuse = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.fuse(x)

    head, x = Head(), torch.randn(1, 3, 4, 4)
    torch.testing.assert_close(reparameterize(head)(x), head(x))
