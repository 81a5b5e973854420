"""Accuracies, and what is asked of weights and images that are to be scored."""

import json

import pytest
import timm
import torch
import torch.nn.functional as F
from small_runs import MODEL, parquet_folder, random_images

from rdpnet_timm import reparameterize
from rdpnet_timm.checkpoint import save_model
from rdpnet_timm.cli import main
from rdpnet_timm.train import evaluate


def test_evaluation_counts_as_an_independent_loop_does(monkeypatch):
    torch.manual_seed(0)
    model, images = timm.create_model(MODEL, num_classes=4), random_images(count=30)
    monkeypatch.setattr("rdpnet_timm.train.evaluation.AT_ONCE", images.pixels[:7, ..., 0].numel())
    batches = []
    model.register_forward_pre_hook(lambda module, args: batches.append(len(args[0])))
    found = evaluate(model, images)
    assert batches == [7, 7, 7, 7, 2], "larger images must come in smaller batches"
    mean, std = (torch.tensor(model.pretrained_cfg[name]).reshape(1, 3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        logits = model.eval()((images.pixels.permute(0, 3, 1, 2) / 255 - mean) / std)
    assert found.correct == sum(int(logit.argmax() == label) for logit, label in zip(logits, images.labels))
    assert found.loss == pytest.approx(float(F.cross_entropy(logits, images.labels)), rel=1e-5)


def test_a_wrong_class_count_is_refused():
    with pytest.raises(ValueError, match="the model has 10 classes, the images have 4: class 0"):
        evaluate(timm.create_model(MODEL), random_images(count=2))


def test_weights_of_the_deploy_form_are_evaluated_in_that_alone(tmp_path, capsys):
    path = str(tmp_path / "d.safetensors")
    save_model(
        reparameterize(timm.create_model(f"{MODEL}.digits", pretrained=True)), path, MODEL, {"inference_mode": True}
    )
    assert main(["evaluate", "digits", "--weights", path]) == 0
    assert capsys.readouterr().out.startswith("deploy form: ")


def test_an_evaluation_of_a_network_without_three_channels_is_refused_by_name(tmp_path, capsys):
    path = str(tmp_path / "grey.safetensors")
    save_model(timm.create_model(MODEL, in_chans=1), path, MODEL, {"in_chans": 1})
    assert main(["evaluate", "digits", "--weights", path]) == 1
    assert "read in three colours, and the model takes 1 channels" in capsys.readouterr().err


def test_weights_are_not_scored_on_images_of_other_classes(tmp_path, capsys):
    assert main(["evaluate", "digits", "--model", "rdpnet_025_cifar"]) == 1  # CIFAR-10's, of as many classes
    assert (
        "only in weights: airplane, automobile, bird, cat, deer, ...; only in images: 0, 1" in capsys.readouterr().err
    )
    data = parquet_folder(tmp_path)
    weights = tmp_path / "weights.safetensors"
    save_model(timm.create_model(MODEL, num_classes=4), weights, MODEL, {"num_classes": 4})
    for classes, status in (("abcd", 0), ("abdc", 1)):
        weights.with_suffix(".json").write_text(json.dumps({"classes": list(classes)}))
        assert main(["evaluate", data, "--weights", str(weights)]) == status
    weights.with_suffix(".json").unlink()
    assert main(["evaluate", data, "--weights", str(weights)]) == 0  # nothing is known of their classes


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="older torch has another name for it")
@pytest.mark.parametrize("precision", ["tf32", "ieee"])
def test_an_accuracy_is_of_float32_on_a_gpu_too(precision, monkeypatch):
    """Ten bits of mantissa, as cuDNN's convolutions have by default, would be no better than half precision's."""
    monkeypatch.setattr(torch.backends.cudnn.conv, "fp32_precision", precision)
    model, seen = timm.create_model("rdpnet_025_cifar", num_classes=4), []
    model.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.conv.fp32_precision))
    evaluate(model, random_images(count=4))
    assert seen == ["ieee"] and torch.backends.cudnn.conv.fp32_precision == precision
