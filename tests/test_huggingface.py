"""Models go to the Hugging Face Hub and come back by timm's own functions."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from huggingface_hub import HfApi
from huggingface_hub.utils import EntryNotFoundError
from packaging.version import Version
from timm.models import save_for_hf

from rdpnet_timm import reparameterize, weights
from rdpnet_timm.checkpoint import load_model, save_model
from rdpnet_timm.weights import cards


def logits(model: torch.nn.Module) -> torch.Tensor:
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return model.eval()(x)


@pytest.mark.parametrize("form", ["train form", "born in the deploy form", "reparameterised"])
def test_a_saved_model_comes_back_with_its_form_and_its_classes(form: str, tmp_path: Path) -> None:
    model = timm.create_model("rdpnet_025_cifar", pretrained=True, inference_mode=form == "born in the deploy form")
    args = {"inference_mode": True} if form != "train form" else {}
    model = reparameterize(model) if form == "reparameterised" else model
    save_for_hf(model, str(tmp_path), model_args=args, safe_serialization=True)
    assert not list(tmp_path.glob("*.bin")), "safetensors alone"
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert torch.equal(logits(again), logits(model))
    assert tuple(again.pretrained_cfg["label_names"]) == tuple(weights.card("rdpnet_025_cifar.c10")["classes"])
    assert again.pretrained_cfg["license"] == "apache-2.0"


def test_a_net_of_your_own_takes_its_classes_along_and_nothing_that_is_said_of_others(tmp_path: Path) -> None:
    name, names = "rdpnet_025_cifar", ("cross", "disc", "square")
    save_model(timm.create_model(name, num_classes=3), tmp_path / "own.pth", name, {}, names)
    save_for_hf(load_model(tmp_path / "own.pth"), str(tmp_path / "hub"), safe_serialization=True)
    again = load_model(f"local-dir:{tmp_path}/hub")
    assert tuple(again.pretrained_cfg["label_names"]) == names
    written = (tmp_path / "hub/config.json").read_text()
    assert "CIFAR" not in written and "c10" not in json.loads(written)["pretrained_cfg"].values()


def test_another_width_with_other_arguments_comes_back(tmp_path: Path) -> None:
    args = dict(shuffle_groups=0, pointwise_identity=True)
    model = timm.create_model("rdpnet_050", num_classes=5, in_chans=1, **args)
    if Version(timm.__version__) < Version("1.0.31"):  # an older timm does not record it by itself
        args["in_chans"] = 1
    save_for_hf(model, str(tmp_path), model_args=args, safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    x = torch.randn(1, 1, 64, 64)
    with torch.inference_mode():
        assert torch.equal(again.eval()(x), model.eval()(x))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of the Hub's server, behind the client's four functions that timm calls."""

    def upload(api: HfApi, repo_id: str, folder_path: str, **_: object) -> None:
        shutil.copytree(folder_path, tmp_path / repo_id)

    def download(repo_id: str, filename: str, **_: object) -> str:
        if not (tmp_path / repo_id / filename).exists():
            raise EntryNotFoundError(filename)
        return str(tmp_path / repo_id / filename)

    monkeypatch.setattr(HfApi, "create_repo", lambda api, repo_id, **_: SimpleNamespace(repo_id=repo_id))
    monkeypatch.setattr(HfApi, "file_exists", lambda api, **_: False)
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    monkeypatch.setattr("timm.models._hub.hf_hub_download", download)
    return tmp_path


def test_the_pages_example_of_the_hub_gives_the_model_back(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parent.parent / "docs/timm.md").read_text().split("## The Hugging Face Hub")[1]
    monkeypatch.chdir(hub)
    names: dict = {}
    exec(page.split("```python\n")[1].split("```")[0], names)
    shipped = logits(timm.create_model(names["name"], pretrained=True))
    assert torch.equal(logits(names["model"]), shipped) and torch.equal(logits(names["again"]), shipped)
    (repository,) = hub.glob("you/*")
    assert {path.name for path in repository.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    written = (repository / "README.md").read_text()
    assert "apache-2.0" in written and names["name"] in written


def test_weights_say_licence_classes_and_what_they_are() -> None:
    for name in weights.names():
        cfg, card = timm.models.get_pretrained_cfg(name), weights.card(name)
        assert cfg.license == "apache-2.0" and list(cfg.label_names) == card["classes"]
        assert card["data"] in cfg.description and f"{card['accuracy_deploy_form']:.2f} %" in cfg.description
        assert cfg.num_classes == len(card["classes"])
    assert timm.models.get_pretrained_cfg("rdpnet_100").license == "apache-2.0"


def test_every_shipped_weight_has_the_model_card_of_its_json(tmp_path: Path) -> None:
    cards.write(tmp_path)
    for name in weights.names():
        shipped = (weights.FOLDER / f"{name}.md").read_text()
        assert shipped == (tmp_path / f"{name}.md").read_text(), (
            "python -c 'from rdpnet_timm.weights.cards import write; write()'"
        )
        facts = json.loads((weights.FOLDER / f"{name}.json").read_text())
        assert facts["sha256"] in shipped and f"{facts['accuracy_deploy_form']:.2f} %" in shipped
        assert shipped.startswith("---\n") and "license: apache-2.0" in shipped
