"""OpenMMLab's packages beside what else a user has installed."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("mmdet")
pytest.importorskip("mmpretrain")

from rdpnet_timm.openmmlab import patches

OLD_NAMES = ("apply_chunking_to_forward", "find_pruneable_heads_and_indices", "prune_linear_layer")


def write_transformers(folder: Path, version: str, names: "tuple[str, ...]") -> Path:
    """A package that looks, to who asks for its version and its names, like transformers."""
    about, any_name = folder / f"transformers-{version}.dist-info", "def __getattr__(name): return type(name, (), {})\n"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: transformers\nVersion: {version}\n")
    for module in ("", "activations", "modeling_outputs", "models", "models/auto", "models/auto/auto_factory"):
        (folder / "transformers" / module).mkdir()
        (folder / "transformers" / module / "__init__.py").write_text(any_name)
    modeling_utils = "class PreTrainedModel: ...\n" + "".join(f"{name} = None\n" for name in names)
    (folder / "transformers" / "modeling_utils.py").write_text(modeling_utils)
    return folder


def run_beside(folder: Path, code: str) -> "subprocess.CompletedProcess[str]":
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_mmdet_and_mmpretrain_can_be_imported_beside_a_transformers_without_what_mmpretrain_needs(
    tmp_path: Path,
) -> None:
    folder = write_transformers(tmp_path, "5.0.0", ())
    switched_back = "import rdpnet_timm.openmmlab, mmpretrain.utils.dependency as d; d.WITH_MULTIMODAL = True; "
    unmended = run_beside(folder, switched_back + "import mmdet.models")
    assert unmended.returncode == 1 and "TypeError" in unmended.stderr, "the stub does not show the fault any more"

    code = "import rdpnet_timm.openmmlab, mmdet.models, mmpretrain.models; print(mmpretrain.models.RepVGG.__name__)"
    mended = run_beside(folder, code)
    assert mended.returncode == 0 and mended.stdout == "RepVGG\n", mended.stderr[-2000:]
    assert mended.stderr.count("pip install 'transformers<5'") == 1, mended.stderr[-2000:]


@pytest.mark.skipif("transformers" in sys.modules, reason="this process has imported the real one")
@pytest.mark.parametrize("kept", [OLD_NAMES, OLD_NAMES[:1], ()], ids=len)
def test_what_transformers_lacks_is_read_off_its_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: "tuple[str, ...]"
) -> None:
    monkeypatch.syspath_prepend(str(write_transformers(tmp_path, "4.40.0", kept)))
    assert patches._missing_in_transformers() == [name for name in OLD_NAMES if name not in kept]
    assert "transformers" not in sys.modules


def test_nothing_is_changed_where_transformers_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = patches.importlib.util.find_spec
    monkeypatch.setattr(
        patches.importlib.util, "find_spec", lambda name: None if name == "transformers" else find_spec(name)
    )
    assert patches._missing_in_transformers() == []


def test_a_checkpoint_whose_metainfo_has_a_dictionary_is_read_by_the_safe_loader(tmp_path: Path) -> None:
    from mmengine.config import ConfigDict
    from mmengine.config.lazy import LazyObject

    patches.allow_checkpoint_types()
    meta = dict(classes=("a", "b"), info=ConfigDict(author=dict(name="x"), years=[2025, 2026]))
    torch.save(dict(meta=dict(dataset_meta=meta)), tmp_path / "epoch_1.pth")
    read = torch.load(tmp_path / "epoch_1.pth", weights_only=True)["meta"]["dataset_meta"]
    assert read == meta and type(read["info"]) is ConfigDict
    torch.save(ConfigDict(module=LazyObject("os")), tmp_path / "lazy.pth")  # would be imported when it is asked for
    with pytest.raises(pickle.UnpicklingError, match="LazyObject"):
        torch.load(tmp_path / "lazy.pth", weights_only=True)
