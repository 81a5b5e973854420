"""The OpenMMLab backbones: one network with timm's models, and the arguments that mm users expect."""

import argparse
from pathlib import Path
from typing import Any, Dict

import pytest
import timm
import torch
from torch import Tensor, nn

pytest.importorskip("mmcv")

from mmengine.registry import MODELS

from rdpnet_timm import RDPNet as TimmRDPNet
from rdpnet_timm import reparameterize
from rdpnet_timm.openmmlab import RDPNet, TimmBackbone


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """With batch norms that are not the identity."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            with torch.no_grad():
                module.weight.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def timm_maps(model: nn.Module, x: Tensor) -> Any:
    return model.forward_intermediates(x, intermediates_only=True)


def train_checkpoint(path: Path, ema: bool = True, name: str = "rdpnet_025") -> TimmRDPNet:
    """What timm's train.py writes, and the model whose weights should be taken from it."""
    raw, averaged = (randomised(timm.create_model(name, num_classes=7), seed) for seed in (1, 2))
    content: Dict[str, Any] = {
        "epoch": 3,
        "arch": name,
        "state_dict": {f"module.{key}": value for key, value in raw.state_dict().items()},
        "args": argparse.Namespace(model=name),
    }
    if ema:
        content["state_dict_ema"] = averaged.state_dict()
    torch.save(content, path)
    return averaged if ema else raw


@pytest.mark.parametrize("width", [0.25, 0.75, 1.25])
def test_it_has_the_parameters_of_the_timm_model(width: float) -> None:
    backbone = RDPNet(widen_factor=width)
    model = timm.create_model(f"rdpnet_{round(width * 100):03d}", num_classes=0)
    assert {k: v.shape for k, v in backbone.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}


@pytest.mark.parametrize("ema", [True, False])
def test_a_checkpoint_of_timm_goes_in_unchanged_averaged_weights_first(tmp_path: Path, ema: bool) -> None:
    model = train_checkpoint(tmp_path / "best.pth.tar", ema)
    backbone = MODELS.build(
        dict(
            type="RDPNet",
            widen_factor=0.25,
            out_indices=(0, 1, 2, 3, 4),
            init_cfg=dict(type="Pretrained", checkpoint=str(tmp_path / "best.pth.tar")),
        )
    )
    backbone.init_weights()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        for actual, expected in zip(backbone.eval()(x), timm_maps(model, x)):
            assert torch.equal(actual, expected)


def test_a_checkpoint_goes_into_the_deploy_form_and_into_part_of_the_network(tmp_path: Path) -> None:
    model = train_checkpoint(tmp_path / "best.pth.tar")
    init_cfg = dict(type="Pretrained", checkpoint=str(tmp_path / "best.pth.tar"))
    backbone = RDPNet(0.25, out_indices=(1, 2), init_cfg=[init_cfg], inference_mode=True).eval()
    backbone.init_weights()
    assert not any("branches" in name for name, _ in backbone.named_parameters())
    assert not any(name.startswith("stages.2") for name, _ in backbone.named_parameters())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for actual, expected in zip(backbone(x), timm_maps(model, x)[1:3]):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_the_weights_of_another_width_are_refused_with_both_shapes(tmp_path: Path) -> None:
    train_checkpoint(tmp_path / "wide.pth", name="rdpnet_050")
    backbone = RDPNet(0.25, init_cfg=dict(type="Pretrained", checkpoint=str(tmp_path / "wide.pth")))
    with pytest.raises(RuntimeError, match=r"\(32, 3, 3, 3\).*\(16, 3, 3, 3\)"):
        backbone.init_weights()


def test_the_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "resnet.pth")
    backbone = RDPNet(0.25, init_cfg=dict(type="Pretrained", checkpoint=str(tmp_path / "resnet.pth")))
    with pytest.raises(RuntimeError, match=r"has no weights for .* of RDPNet"):
        backbone.init_weights()


def test_a_missing_checkpoint_is_named() -> None:
    backbone = RDPNet(0.25, init_cfg=dict(type="Pretrained", checkpoint="nowhere/best.pth"))
    with pytest.raises(FileNotFoundError, match=r"nowhere/best\.pth"):
        backbone.init_weights()


@pytest.mark.parametrize("init_cfg", [dict(type="Pretrained"), [dict(type="Pretrained", checkpoint=None)]], ids=str)
@pytest.mark.parametrize(
    "build", [RDPNet, lambda **kwargs: TimmBackbone("rdpnet_025", **kwargs)], ids=["RDPNet", "timm"]
)
def test_pretrained_without_a_checkpoint_says_what_to_add(build: Any, init_cfg: Any) -> None:
    backbone = build(init_cfg=init_cfg)
    with pytest.raises(ValueError, match=r"names no checkpoint: add checkpoint='FILE'"):
        backbone.init_weights()


@pytest.mark.parametrize(
    "build", [RDPNet, lambda **kwargs: TimmBackbone("rdpnet_025", **kwargs)], ids=["RDPNet", "timm"]
)
def test_an_init_cfg_that_is_not_pretrained_is_obeyed(build: Any) -> None:
    constant = dict(type="Constant", layer="Conv2d", val=0.25)
    backbone = build(init_cfg=[constant, dict(type="Constant", layer="BatchNorm2d", val=2.0, bias=3.0)])
    backbone.init_weights()
    convs = [module for module in backbone.modules() if isinstance(module, nn.Conv2d)]
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert convs and all((conv.weight == 0.25).all() for conv in convs)
    assert norms and all((norm.weight == 2).all() and (norm.bias == 3).all() for norm in norms)


def test_pretrained_weights_come_after_every_other_initialisation(tmp_path: Path) -> None:
    model = train_checkpoint(tmp_path / "best.pth.tar")
    pretrained = dict(type="Pretrained", checkpoint=str(tmp_path / "best.pth.tar"))
    backbone = RDPNet(0.25, init_cfg=[pretrained, dict(type="Constant", layer="Conv2d", val=0.25)])
    backbone.init_weights()
    expected = model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in backbone.state_dict().items())


@pytest.mark.parametrize("init_cfg", [None, dict(type="Kaiming", layer="Conv2d")], ids=str)
@pytest.mark.parametrize(
    "build", [RDPNet, lambda **kwargs: TimmBackbone("rdpnet_025", **kwargs)], ids=["RDPNet", "timm"]
)
def test_a_second_initialisation_changes_nothing(build: Any, init_cfg: Any) -> None:
    backbone = build(init_cfg=init_cfg)
    assert not backbone.is_init
    backbone.init_weights()
    assert backbone.is_init
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    backbone.init_weights()
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert backbone.init_cfg == init_cfg


def test_what_could_not_be_loaded_is_loaded_by_the_next_call(tmp_path: Path) -> None:
    path = tmp_path / "best.pth.tar"
    backbone = RDPNet(0.25, init_cfg=dict(type="Pretrained", checkpoint=str(path)))
    with pytest.raises(FileNotFoundError):
        backbone.init_weights()
    assert not backbone.is_init
    model = train_checkpoint(path)
    backbone.init_weights()
    expected = model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in backbone.state_dict().items())


def test_a_backbone_taken_out_of_a_detector_goes_back_into_timm(tmp_path: Path) -> None:
    detector = nn.ModuleDict({"backbone": randomised(RDPNet(0.25, out_indices=(4,))), "neck": nn.Conv2d(3, 3, 1)})
    model = timm.create_model("rdpnet_025", num_classes=0)
    model.load_state_dict(detector["backbone"].state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model.eval().forward_features(x), detector["backbone"](x)[0])
    torch.save({"state_dict": detector.state_dict()}, tmp_path / "detector.pth")
    init_cfg = dict(type="Pretrained", checkpoint=str(tmp_path / "detector.pth"), prefix="backbone.")
    again = RDPNet(0.25, init_cfg=init_cfg).eval()
    again.init_weights()
    with torch.no_grad():
        assert torch.equal(again(x)[0], detector["backbone"](x)[0])


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_the_maps_have_the_strides_and_channels_of_the_table(output_stride: int) -> None:
    backbone = RDPNet(1.0, out_indices=(0, 1, 2, 3, 4), output_stride=output_stride).eval()
    with torch.no_grad():
        shapes = [tuple(map_.shape[1:]) for map_ in backbone(torch.randn(1, 3, 64, 96))]
    strides = [min(stride, output_stride) for stride in (2, 4, 8, 16, 32)]
    assert shapes == [(c, 64 // s, 96 // s) for c, s in zip((64, 64, 128, 256, 1280), strides)]


def test_it_can_be_reparameterised_as_any_model() -> None:
    backbone = randomised(RDPNet(0.25, out_indices=(1, 3, 4), output_stride=16, norm_cfg=dict(type="SyncBN")))
    deployed = reparameterize(backbone)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for actual, expected in zip(deployed(x), backbone(x)):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("frozen_stages", [-1, 0, 2, 4])
def test_frozen_stages_get_no_gradients_and_keep_their_statistics(frozen_stages: int) -> None:
    backbone = RDPNet(0.25, frozen_stages=frozen_stages).train()
    before = {name: value.clone() for name, value in backbone.named_buffers()}
    output = backbone(torch.randn(2, 3, 64, 64, requires_grad=True))[0]
    output.sum().backward()
    frozen = ["stem.", *(f"stages.{index}." for index in range(4))][: frozen_stages + 1]
    for name, parameter in backbone.named_parameters():
        assert (parameter.grad is None) == name.startswith(tuple(frozen)), name
    for name, value in backbone.named_buffers():
        assert torch.equal(value, before[name]) == name.startswith(tuple(frozen)), name


def test_norm_eval_keeps_all_statistics_while_weights_learn() -> None:
    backbone = RDPNet(0.25, norm_eval=True).train()
    before = {name: value.clone() for name, value in backbone.named_buffers()}
    backbone(torch.randn(2, 3, 64, 64))[0].sum().backward()
    assert backbone.training and all(torch.equal(value, before[name]) for name, value in backbone.named_buffers())
    assert all(parameter.grad is not None for parameter in backbone.parameters())


def test_recomputed_activations_give_the_same_gradients() -> None:
    gradients = []
    for with_cp in (False, True):
        torch.manual_seed(0)
        backbone = RDPNet(0.25, with_cp=with_cp, frozen_stages=1, norm_eval=True).double().train()
        backbone(torch.ones(1, 3, 64, 64, dtype=torch.float64))[0].sum().backward()
        gradients.append([p.grad for p in backbone.parameters() if p.requires_grad])
    for plain, recomputed in zip(*gradients):
        assert torch.equal(plain, recomputed)


def test_a_batch_that_is_recomputed_moves_the_statistics_once() -> None:
    backbone = RDPNet(0.25, with_cp=True, out_indices=(1, 4)).train()
    for step in (1, 2):
        sum(map_.sum() for map_ in backbone(torch.randn(2, 3, 64, 64))).backward()
        assert {int(value) for name, value in backbone.named_buffers() if name.endswith("tracked")} == {step}


def test_norm_cfg_reaches_every_batch_norm() -> None:
    backbone = RDPNet(0.25, norm_cfg=dict(type="SyncBN", eps=1e-3, requires_grad=False))
    norms = [module for module in backbone.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert all(
        isinstance(norm, nn.SyncBatchNorm) and norm.eps == 1e-3 and not norm.weight.requires_grad for norm in norms
    )


@pytest.mark.parametrize(
    "wrong",
    [
        dict(out_indices=(5,)),
        dict(out_indices=()),
        dict(out_indices=(3, 1)),
        dict(frozen_stages=5),
        dict(frozen_stages=-2),
        dict(output_stride=12),
        dict(strides=(2, 2, 3, 2, 2)),
        dict(strides=(2, 2)),
        dict(in_channels=0),
        dict(widen_factor=0.33),
        dict(norm_cfg=dict(type="GN", num_groups=4)),
    ],
    ids=str,
)
def test_a_wrong_value_is_refused_with_the_value(wrong: Dict[str, Any]) -> None:
    value = next(iter(wrong.values()))
    shown = str(value) if isinstance(value, (dict, tuple)) else repr(value)
    with pytest.raises(ValueError) as error:
        RDPNet(**wrong)
    assert shown in str(error.value)


@pytest.mark.parametrize("registry", ["mmdet", "mmseg", "mmpretrain"])
def test_it_is_found_from_each_framework(registry: str) -> None:
    framework = pytest.importorskip(f"{registry}.registry")
    backbone = framework.MODELS.build(dict(type="RDPNet", widen_factor=0.25, in_channels=1))
    assert type(backbone) is RDPNet
    assert backbone(torch.randn(2, 1, 64, 64))[0].shape == (2, 320, 2, 2)


@pytest.mark.parametrize(
    "arguments, channels",
    [
        (dict(model_name="mobilenetv2_050"), [16, 16, 48, 160]),
        (dict(model_name="mobilenetv3_large_100", channel_multiplier=0.35), [8, 16, 40, 336]),
        (dict(model_name="mobilenetv3_small_100", channel_multiplier=1.25), [24, 32, 64, 720]),
    ],
    ids=str,
)
def test_the_adapter_gives_the_maps_of_a_timm_model(arguments: Dict[str, Any], channels: Any) -> None:
    backbone = TimmBackbone(**arguments, output_stride=16).eval()
    with torch.no_grad():
        maps = backbone(torch.randn(1, 3, 64, 64))
    assert [map_.shape[1] for map_ in maps] == channels == backbone.channels
    assert [64 // map_.shape[-1] for map_ in maps] == [4, 8, 16, 16]


def test_the_adapter_takes_checkpoints_of_timm(tmp_path: Path) -> None:
    model = timm.create_model("mobilenetv2_050", num_classes=5).eval()
    torch.save({"state_dict": model.state_dict()}, tmp_path / "best.pth.tar")
    init_cfg = dict(type="Pretrained", checkpoint=str(tmp_path / "best.pth.tar"))
    backbone = TimmBackbone("mobilenetv2_050", out_indices=(4,), init_cfg=init_cfg).eval()
    backbone.init_weights()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model.forward_intermediates(x, intermediates_only=True)[-1]
        assert torch.equal(backbone(x)[0], expected)


@pytest.mark.parametrize("prefix", ["backbone.", "backbone", "backbone.timm_model."])
def test_a_timm_backbone_taken_out_of_a_detector_goes_into_another(prefix: str, tmp_path: Path) -> None:
    backbone = randomised(TimmBackbone("mobilenetv2_050"))
    torch.save({"state_dict": nn.ModuleDict({"backbone": backbone}).state_dict()}, tmp_path / "detector.pth")
    init_cfg = dict(type="Pretrained", checkpoint=str(tmp_path / "detector.pth"), prefix=prefix)
    again = TimmBackbone("mobilenetv2_050", init_cfg=init_cfg)
    again.init_weights()
    expected = backbone.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in again.state_dict().items())


@pytest.mark.parametrize(
    ("given", "prefix", "told", "not_told"),
    [
        ((1, 2, 3), None, "need prefix='backbone.'", "ends earlier"),
        ((1, 2, 3), "backbone.", "ends earlier", "need prefix"),
        ((1, 2, 3, 4), "neck.", "no weights under the prefix 'neck.'", "need prefix"),
    ],
)
def test_what_is_missing_is_put_down_to_the_prefix_only_where_that_is_it(
    given: Any, prefix: Any, told: str, not_told: str, tmp_path: Path
) -> None:
    detector = nn.ModuleDict({"backbone": RDPNet(0.25, out_indices=given)})
    torch.save({"state_dict": detector.state_dict()}, tmp_path / "detector.pth")
    init_cfg = dict(type="Pretrained", checkpoint=str(tmp_path / "detector.pth"), prefix=prefix)
    with pytest.raises(RuntimeError) as error:
        RDPNet(0.25, out_indices=(1, 2, 3, 4), init_cfg=init_cfg).init_weights()
    assert told in str(error.value) and not_told not in str(error.value)


@pytest.mark.parametrize(
    ("name", "frozen"),
    [
        ("mobilenetv2_050", ("conv_stem", "bn1", "blocks.0", "blocks.1")),
        ("mobilenetv3_small_100", ("conv_stem", "bn1", "blocks.0", "blocks.1")),
        ("resnet18", ("conv1", "bn1", "layer1")),
        ("rdpnet_025", ("stem", "stages_0")),
    ],
)
def test_frozen_stages_of_a_timm_model_are_all_that_leads_to_a_map(name: str, frozen: Any) -> None:
    backbone = TimmBackbone(name, out_indices=(1, 2, 4), frozen_stages=1).train()
    if name == "mobilenetv3_small_100":
        frozen = frozen[:3]  # its first stage has stride 4
        assert backbone.timm_model.feature_info.info[1]["reduction"] == 4
    before = {key: value.clone() for key, value in backbone.timm_model.named_buffers()}
    maps = backbone(torch.randn(2, 3, 64, 64))
    sum(map_.sum() for map_ in maps[1:]).backward()  # type: ignore[union-attr]
    inside = tuple(f"{each}." for each in frozen)
    for key, parameter in backbone.timm_model.named_parameters():
        assert (parameter.grad is None) == key.startswith(inside), key
    for key, value in backbone.timm_model.named_buffers():
        assert torch.equal(value, before[key]) == key.startswith(inside), key
    with pytest.raises(ValueError, match=r"frozen_stages must be .* got 9"):
        TimmBackbone(name, frozen_stages=9)
