"""What is compared: networks, forms and settings of the tables, and the peers that timm does not have."""

import pytest
import timm
import torch
from packaging.version import Version
from small_results import ENTRIES, outputs
from torch import nn
from torchvision import models as torchvision_models

from rdpnet_timm.bench import peers, training
from rdpnet_timm.bench.tables import TABLES
from rdpnet_timm.measure.published import IMAGENET, PAPER
from rdpnet_timm.measure.size import count


@pytest.mark.parametrize("name", ["resnet18", "vgg16", "mobilenetv2_100"])
def test_parameters_and_macs_of_peers_are_those_torchvision_publishes(name):
    weights = torchvision_models.get_model_weights(name.replace("v2_100", "_v2").replace("netv2", "net_v2")).DEFAULT
    with torch.device("meta"):
        model = timm.create_model(name)
    params, macs = count(model, (3, 224, 224))
    assert params == weights.meta["num_params"]
    assert macs / 1e9 == pytest.approx(weights.meta["_ops"], abs=0.006)


@pytest.mark.parametrize("width", [0.25, 0.75, 1.5])
def test_macs_of_the_deploy_form_are_those_of_the_formula(width):
    c0, c1, c2, c3, c4 = (int(c) for c in (min(64, 64 * width), 64 * width, 128 * width, 256 * width, 1280 * width))
    layers = [(c0, c1, 56), (c1, c2, 28), *[(c2, c2, 28)] * 3, (c2, c3, 14), *[(c3, c3, 14)] * 13, (c3, c4, 7)]
    expected = 27 * c0 * 112**2 + sum((9 * a + a * b) * size**2 for a, b, size in layers) + c4 * 1000
    model = timm.create_model(f"rdpnet_{round(100 * width):03}", inference_mode=True)
    assert count(model, (3, 224, 224)).macs == expected


def test_every_network_of_the_papers_tables_is_measured_in_the_same_table():
    for name, paper in PAPER.items():
        assert set(paper.rows) == {entry for table, entry in ENTRIES if table == name} or name == "table6"
        assert all(len(row) == len(paper.columns) for row in paper.rows.values())


def test_every_reference_is_ours_or_a_straight_stack_and_stands_in_its_comparison():
    for table in TABLES.values():
        for comparison in table.comparisons:
            assert comparison.reference in [entry.name for entry in comparison.entries]
            assert "RDPNet" in comparison.reference or "straight" in comparison.reference


def test_every_published_accuracy_names_a_timm_model_its_source_and_its_recipe():
    names = set(timm.list_models())
    for name, figure in IMAGENET.items():
        assert name in names or Version(timm.__version__) < Version("1.0.31")  # an older timm lacks some
        assert figure.source and figure.recipe and 50 < figure.top1 < 90
        assert figure.source in TABLES["modern"].note and figure.recipe in TABLES["modern"].note


@pytest.mark.parametrize(
    "name", ["MobileNetV1-0.25x", "MobileNetV2-0.5x", "MobileNetV3-small-0.75x", "MobileNetV3-large-1.0x"]
)
def test_cifar_forms_end_in_a_map_of_4x4_with_the_papers_macs(name):
    model = ENTRIES["table4", name].build()
    assert outputs(peers.Trunk(model), torch.zeros(1, 3, 32, 32)).shape[2:] == (4, 4)
    assert count(model, (3, 32, 32)).macs / 1e6 == pytest.approx(PAPER["table4"].rows[name][1], rel=0.1)


def test_networks_that_are_trained_side_by_side_end_in_maps_of_the_same_size():
    for entry in training.entries(training.Setting(1.0, (3, 32, 32), 16)):
        assert outputs(peers.Trunk(entry.build()), torch.zeros(1, 3, 32, 32)).shape[2:] == (4, 4), entry.name


@pytest.mark.parametrize("name", ["MobileNetV2-0.5x", "MobileNetV3-large-0.35x", "RDPNet-0.75x"])
def test_segmentors_trunks_have_an_output_stride_of_16(name):
    assert outputs(ENTRIES["table7", name].build(), torch.zeros(1, 3, 64, 64)).shape[2:] == (4, 4)


@pytest.mark.parametrize("separable", [False, True])
@pytest.mark.parametrize(("per_block", "shortcuts"), [(0, 0), (2, 3), (3, 2)])
def test_stacks_differ_in_their_shortcuts_alone(per_block, shortcuts, separable):
    model = peers.stack(7, per_block, 8, separable)
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert len(convs) == 7 * (1 + separable)
    assert sum(isinstance(module, nn.ReLU) for module in model.modules()) == len(convs)
    assert sum(isinstance(module, peers._Residual) for module in model.modules()) == shortcuts
    x = torch.randn(1, 8, 5, 5)
    assert outputs(model, x).shape == x.shape
