"""RDPNet keeps the whole contract of a timm model, in both forms."""

import copy
from typing import Any, Dict, List

import pytest
import timm
import torch
from torch import nn

import rdpnet_timm
from rdpnet_timm.blocks import RDPModule, RepVGGBlock
from rdpnet_timm.measure.difference import randomize_norms
from rdpnet_timm.measure.size import count

NAMES = timm.list_models("rdpnet*")
FORMS = pytest.mark.parametrize("inference_mode", [False, True], ids=["train", "deploy"])


def create(name: str = "rdpnet_025_cifar", **kwargs: Any) -> nn.Module:
    return randomize_norms(timm.create_model(name, **kwargs)).eval()


def images(name: str = "rdpnet_025_cifar", batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, *timm.get_pretrained_cfg(name).input_size)


def test_the_twelve_models_are_registered() -> None:
    assert sorted(NAMES) == sorted(
        f"rdpnet_{width}{form}" for width in ("025", "050", "075", "100", "125", "150") for form in ("", "_cifar")
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_maps_are_those_of_table_2(name: str) -> None:
    width = int(name.split("_")[1]) / 100
    model = timm.create_model(name, features_only=True).eval()
    reductions = [1, 1, 2, 4, 8] if name.endswith("cifar") else [2, 4, 8, 16, 32]
    channels = [min(64, 64 * width), 64 * width, 128 * width, 256 * width, 1280 * width]
    assert model.feature_info.channels() == channels
    assert model.feature_info.reduction() == reductions
    with torch.no_grad():
        maps = model(torch.randn(1, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [(1, c, 64 // r, 96 // r) for c, r in zip(channels, reductions)]


@pytest.mark.parametrize("name", NAMES)
def test_parameters_and_macs_follow_the_closed_formula(name: str) -> None:
    width, size = int(name.split("_")[1]) / 100, timm.get_pretrained_cfg(name).input_size
    classes, strides = (10, (1, 1, 2, 2, 2)) if name.endswith("cifar") else (1000, (2, 2, 2, 2, 2))
    stages = [(64 * width, 1), (128 * width, 4), (256 * width, 14), (1280 * width, 1)]
    side, c_in = size[1] // strides[0], min(64, 64 * width)
    params, macs = {True: 28 * c_in, False: (27 + 3 + 4) * c_in}, {True: 27, False: 30}
    macs = {form: weights * c_in * side**2 for form, weights in macs.items()}
    for (c_out, depth), stride in zip(stages, strides[1:]):
        for index in range(depth):
            before, side = side, side // (stride if index == 0 else 1)
            params[True] += 10 * c_in + (c_in + 1) * c_out
            params[False] += (9 + 1 + 6) * c_in + (2 * c_in + 4) * c_out
            macs[True] += side**2 * (9 * c_in + c_in * c_out)  # the stride is the depthwise convolution's
            macs[False] += before**2 * 10 * c_in + side**2 * 2 * c_in * c_out
            c_in = c_out
    for inference_mode in (True, False):
        model = timm.create_model(name, inference_mode=inference_mode)
        expected = (params[inference_mode] + (c_in + 1) * classes, macs[inference_mode] + c_in * classes)
        assert count(model, size) == expected, f"inference_mode={inference_mode}"


@FORMS
def test_script_trace_fx_and_export_give_the_same_output(inference_mode: bool) -> None:
    model, x = create(inference_mode=inference_mode), images()
    with torch.no_grad():
        expected = model(x)
        for transformed in (
            torch.jit.script(model),
            torch.jit.trace(model, x),
            torch.fx.symbolic_trace(model),
            torch.export.export(model, (x,)).module(),
            torch.compile(model, fullgraph=True, backend="aot_eager"),
            copy.deepcopy(model),
        ):
            torch.testing.assert_close(transformed(x), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.slow
@FORMS
def test_inductor_compiles_the_blocks_as_one_graph(inference_mode: bool) -> None:
    # One block of each kind: the whole network takes inductor minutes of C++ and has no other code in it.
    blocks = [RepVGGBlock(3, 8), RDPModule(8, 12, 2)]
    model, x = randomize_norms(nn.Sequential(*blocks)).eval(), torch.randn(2, 3, 32, 32)
    if inference_mode:
        rdpnet_timm.reparameterize(model, inplace=True)
    with torch.no_grad():
        expected = model(x)
        compiled = torch.compile(model, fullgraph=True)(x)
    torch.testing.assert_close(compiled, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@FORMS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_half_and_near(inference_mode: bool, dtype: torch.dtype) -> None:
    model, x = timm.create_model("rdpnet_025_cifar", inference_mode=inference_mode).eval(), images()
    with torch.no_grad():
        expected = model(x)
        actual = model.to(dtype)(x.to(dtype))
    assert actual.dtype == dtype
    assert (actual.float() - expected).abs().max() <= 0.1 * expected.abs().max()


@FORMS
def test_channels_last_goes_through(inference_mode: bool) -> None:
    model, x = create(inference_mode=inference_mode), images()
    with torch.no_grad():
        expected = model(x)
        model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
        assert model.forward_features(x).is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@FORMS
def test_device_and_dtype_are_those_asked_for(inference_mode: bool) -> None:
    model = timm.create_model("rdpnet_025", inference_mode=inference_mode, device="meta", dtype=torch.bfloat16)
    tensors = [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]
    assert all(tensor.is_meta and tensor.dtype == torch.bfloat16 for tensor in tensors)


@FORMS
def test_every_parameter_gets_a_gradient_with_and_without_checkpointing_and_a_batch_counts_once(
    inference_mode: bool,
) -> None:
    model, x = create(inference_mode=inference_mode, drop_rate=0.0).train(), images()
    gradients: List[List[torch.Tensor]] = []
    buffers: List[Dict[str, torch.Tensor]] = []
    for enable in (False, True):
        twin = copy.deepcopy(model)
        twin.set_grad_checkpointing(enable)
        twin(x).square().mean().backward()
        gradients.append([parameter.grad for parameter in twin.parameters()])
        buffers.append(dict(twin.named_buffers()))
    torch.testing.assert_close(buffers[1], buffers[0])
    for plain, checkpointed in zip(*gradients):
        torch.testing.assert_close(checkpointed, plain)


@pytest.mark.skipif(torch.__version__.startswith("2.5."), reason="torch 2.5 compiles a recomputation with its updates")
def test_a_recomputed_batch_counts_once_where_it_is_compiled_too() -> None:
    model = create(fused=False).train()
    model.stages = model.stages[:1]
    model.set_grad_checkpointing()
    plain, x = copy.deepcopy(model), images()
    torch.compile(model.forward_features, backend="aot_eager")(x).sum().backward()
    plain.set_grad_checkpointing(False)
    plain.forward_features(x).sum().backward()
    torch.testing.assert_close(dict(model.named_buffers()), dict(plain.named_buffers()))


def test_train_form_weights_are_assigned_to_a_deploy_form_on_the_meta_device() -> None:
    trained, x = randomize_norms(create()).eval(), images()
    with torch.device("meta"):
        deployed = create(inference_mode=True)
        deployed.load_state_dict(trained.state_dict(), assign=True)
    torch.testing.assert_close(deployed.eval()(x), trained(x), rtol=1e-4, atol=1e-5)
    deployed.load_state_dict(trained.bfloat16().state_dict(), assign=True)
    assert {parameter.dtype for parameter in deployed.parameters()} == {torch.bfloat16}
    assert deployed(x.bfloat16()).dtype == torch.bfloat16


def test_the_classifier_can_be_replaced_or_removed() -> None:
    model, x = create(num_classes=7), images()
    assert model(x).shape == (2, 7) and model.get_classifier() is model.head
    model.reset_classifier(3, "catavgmax")
    assert model(x).shape == (2, 3) and model.head_hidden_size == 2 * model.num_features
    model.reset_classifier(0)
    assert model(x).shape == (2, model.head_hidden_size)
    model.reset_classifier(0, "")
    assert model(x).shape == (2, model.num_features, 4, 4)
    for num_classes, pool, shape in ((0, "avg", (2, 320)), (0, "", (2, 320, 4, 4)), (5, "max", (2, 5))):
        assert create(num_classes=num_classes, global_pool=pool)(x).shape == shape
    assert create(in_chans=1)(x[:, :1]).shape == (2, 10)
    for classify in (lambda: create(global_pool=""), lambda: model.reset_classifier(3, "")):
        with pytest.raises(ValueError, match=r"global_pool=''.*num_classes=0"):
            classify()
    assert model(x).shape == (2, model.num_features, 4, 4)


def test_features_head_and_forward_agree() -> None:
    model, x = create(drop_rate=0.5), images()
    features = model.forward_features(x)
    pooled = model.forward_head(features, pre_logits=True)
    torch.testing.assert_close(pooled, features.mean((2, 3)))
    torch.testing.assert_close(model(x), model.head(pooled))
    assert not torch.equal(model.train().forward_head(features), model.forward_head(features)), "dropout in training"


@FORMS
def test_intermediates_are_the_outputs_of_the_modules_they_name(inference_mode: bool) -> None:
    model, x = create("rdpnet_025", inference_mode=inference_mode), torch.randn(1, 3, 64, 64)
    expected: List[torch.Tensor] = []
    for info in model.feature_info:
        model.get_submodule(info["module"]).register_forward_hook(lambda *call: expected.append(call[2].clone()))
    last, maps = model.forward_intermediates(x)
    assert len(maps) == len(expected) == 5 and torch.equal(last, maps[-1])
    assert all(torch.equal(a, b) for a, b in zip(maps, expected))
    some = model.forward_intermediates(x, indices=[0, 2], stop_early=True, intermediates_only=True)
    assert torch.equal(some[0], maps[0]) and torch.equal(some[1], maps[2])
    assert len(model.forward_intermediates(x, indices=2, intermediates_only=True)) == 2
    with pytest.raises(ValueError, match="NLC"):
        model.forward_intermediates(x, output_fmt="NLC")


def test_pruning_keeps_the_maps_asked_for_and_nothing_behind_them() -> None:
    model, x = create("rdpnet_025"), torch.randn(1, 3, 64, 64)
    maps = model.forward_intermediates(x, intermediates_only=True)
    for index in range(5):
        pruned = copy.deepcopy(model)
        assert pruned.prune_intermediate_layers([index]) == [index]
        assert len(pruned.stages) == index
        torch.testing.assert_close(pruned(x), maps[index])
        pruned.reset_classifier(4, "avg")
        assert pruned(x).shape == (1, 4)
    kept = copy.deepcopy(model)
    kept.prune_intermediate_layers([4], prune_head=False)
    torch.testing.assert_close(kept(x), model(x))


@pytest.mark.parametrize("feature_cls", ["list", "getter", "dict", "hook", "fx"])
def test_features_only_serves_every_wrapper_of_timm(feature_cls: str) -> None:
    model = timm.create_model("rdpnet_025", features_only=True, out_indices=(1, 3), feature_cls=feature_cls).eval()
    maps = model(torch.randn(1, 3, 64, 64))
    maps = list(maps.values()) if isinstance(maps, dict) else maps
    assert [tuple(m.shape) for m in maps] == [(1, 16, 16, 16), (1, 64, 4, 4)]
    deployed = rdpnet_timm.reparameterize(model)
    assert rdpnet_timm.verify(model, deployed).relative <= 1e-5
    if feature_cls != "fx":
        assert not any(isinstance(module, nn.BatchNorm2d) for module in deployed.modules())


def test_parameter_groups_go_from_the_stem_to_the_head() -> None:
    from timm.models import group_parameters

    model = timm.create_model("rdpnet_025")
    for coarse, layers in ((True, 1 + 4 + 1), (False, 1 + 20 + 1)):
        groups = group_parameters(model, model.group_matcher(coarse=coarse), reverse=True)
        assert set(groups) == {name for name, _ in model.named_parameters()}
        assert len(set(groups.values())) == layers
        assert groups["stem.branches.conv3x3.conv.weight"] == 0
        assert groups["head.weight"] == max(groups.values())


def test_output_strides_are_those_asked_for() -> None:
    for output_stride, reductions in ((8, [2, 4, 8, 8, 8]), (16, [2, 4, 8, 16, 16]), (32, [2, 4, 8, 16, 32])):
        model = timm.create_model("rdpnet_025", features_only=True, output_stride=output_stride)
        assert model.feature_info.reduction() == reductions
        assert [64 // m.shape[-1] for m in model(torch.randn(1, 3, 64, 64))] == reductions
    assert timm.create_model("rdpnet_025_cifar", output_stride=8).feature_info[-1]["reduction"] == 8


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("rdpnet_025", {"output_stride": 4}, r"\[8, 16, 32\].*got 4"),
        ("rdpnet_025_cifar", {"output_stride": 16}, r"\[8\].*\(1, 1, 2, 2, 2\).*got 16"),
        ("rdpnet_025", {"shuffle_groups": 3}, "divide the 16 channels, got 3"),
        ("rdpnet_025", {"shuffle_groups": -1}, "got -1"),
        ("rdpnet_025", {"in_chans": 0}, "in_chans.*got 0"),
        ("rdpnet_025", {"num_classes": -1}, "num_classes.*got -1"),
    ],
)
def test_impossible_arguments_are_refused_with_their_value(name: str, kwargs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        timm.create_model(name, **kwargs)


def test_a_width_without_whole_channels_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got 0\.3"):
        rdpnet_timm.RDPNet(width=0.3)
    assert rdpnet_timm.RDPNet(width=0.125, num_classes=0).num_features == 160


def test_an_unknown_argument_is_refused() -> None:
    with pytest.raises(TypeError, match="not_an_argument"):
        timm.create_model("rdpnet_025", not_an_argument=1)


def test_pretrained_without_weights_says_what_can_be_done() -> None:
    with pytest.raises(RuntimeError, match=r"no pretrained weights for rdpnet_150.*checkpoint_path"):
        timm.create_model("rdpnet_150", pretrained=True)


@FORMS
def test_ones_own_pretrained_file_is_adapted_to_channels_and_classes(inference_mode: bool, tmp_path: Any) -> None:
    source = create("rdpnet_025", num_classes=5)
    torch.save(source.state_dict(), tmp_path / "own.pth")
    overlay = dict(file=str(tmp_path / "own.pth"), num_classes=5)
    kwargs = dict(pretrained=True, pretrained_cfg_overlay=overlay, inference_mode=inference_mode)
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(
        timm.create_model("rdpnet_025", num_classes=5, **kwargs).eval()(x), source(x), rtol=1e-4, atol=1e-4
    )
    grey = timm.create_model("rdpnet_025", in_chans=1, num_classes=2, **kwargs).eval()
    assert grey(x[:, :1]).shape == (1, 2)
    # timm sums an RGB kernel over its channels, so that a grey picture gives what it gave as three equal channels
    torch.testing.assert_close(
        grey.forward_features(x[:, :1]),
        source.forward_features(x[:, :1].expand(1, 3, 64, 64)),
        rtol=1e-3,
        atol=1e-3 * source.forward_features(x).abs().max().item(),
    )
