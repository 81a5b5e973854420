"""What a user gets from ``pip install``: the built wheel, in environments with nothing but what an extra names."""

import os
import re
import shutil
import subprocess
import sys
import venv
from email import message_from_bytes
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Dict, Iterator, List, Set
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement
from PIL import Image

ROOT = Path(__file__).parent.parent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("wheel"),
    pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="needs the source tree to build from"),
]


def needed(names: List[str]) -> Dict[str, Distribution]:
    """The installed distributions that ``names``, requirements with or without extras, need, by name."""
    found: Dict[str, Distribution] = {}
    seen: Set[str] = set()
    waiting = [Requirement(name) for name in names]
    while waiting:
        wanted = waiting.pop()
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        if str(wanted) in seen:
            continue
        seen.add(str(wanted))
        try:
            found[wanted.name.lower()] = distribution(wanted.name)
        except PackageNotFoundError:
            continue  # for another platform
        for text in found[wanted.name.lower()].requires or ():
            inner = Requirement(text)
            if inner.marker is None or any(inner.marker.evaluate({"extra": e}) for e in ("", *wanted.extras)):
                inner.marker = None
                waiting.append(inner)
    return found


class Installed:
    """A fresh environment with the wheel and, linked, what the wheel's ``extra`` needs, and nothing else."""

    def __init__(self, folder: Path, wheel: Path, extra: str) -> None:
        venv.EnvBuilder(symlinks=True).create(folder / "env")
        self.bin = folder / "env" / "bin"
        site = next((folder / "env" / "lib").glob("python*/site-packages"))
        pip = [sys.executable, "-m", "pip", "--python", str(self.bin / "python"), "install", "--quiet", "--no-index"]
        subprocess.run([*pip, "--no-deps", "--disable-pip-version-check", str(wheel)], check=True)
        with ZipFile(wheel) as archive:  # not the metadata of this environment, which may be older
            (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
            requirements = message_from_bytes(archive.read(metadata)).get_all("Requires-Dist")
        own = [Requirement(text) for text in requirements or ()]
        wanted = [r for r in own if r.marker is None or r.marker.evaluate({"extra": extra})]
        for found in needed([f"{r.name}[{','.join(r.extras)}]" if r.extras else r.name for r in wanted]).values():
            tops = {Path(str(file)).parts[0] for file in found.files or ()} - {"..", "__pycache__"}
            for top in tops:
                source = Path(str(found.locate_file(top)))
                if source.exists() and not (site / top).exists():
                    (site / top).symlink_to(source)
        self.folder = folder / "elsewhere"
        self.folder.mkdir()

    def run(self, *command: str, status: int = 0, timeout: int = 500) -> str:
        """Run a command of this environment, far from the source tree; what it printed."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "RDPNET_", "VOCDEVKIT"))}
        result = subprocess.run(
            [str(self.bin / command[0]), *command[1:]],
            cwd=self.folder,
            env={**kept, "PATH": f"{self.bin}:{kept['PATH']}", "COLUMNS": "200", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert result.returncode == status, result.stdout[-3000:] + result.stderr[-3000:]
        return result.stdout + result.stderr


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def base(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("base"), wheel, "")


@pytest.fixture
def installed(wheel: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Installed]:
    yield Installed(tmp_path, wheel, request.param)
    shutil.rmtree(tmp_path / "env")


def test_the_core_needs_torch_torchvision_and_timm_alone(base: Installed) -> None:
    absent = "assert not [n for n in ('onnx', 'rich', 'matplotlib', 'mmengine') if importlib.util.find_spec(n)]"
    code = "import timm; m = timm.create_model('rdpnet_025_cifar', pretrained=True); print(m.pretrained_cfg['tag'])"
    assert "c10" in base.run("python", "-c", f"import importlib.util; {absent}; {code}")
    assert "rdpnet_150" in base.run("rdpnet", "info")
    base.run("python", "-c", code + "; import torch; torch.save(m.state_dict(), 'trained.pth')")
    named = ("--model", "rdpnet_025_cifar")
    assert "differ" in base.run("rdpnet", "reparam", "trained.pth", "-o", "deployed.safetensors", *named)
    assert "differ" in base.run("rdpnet", "verify", "trained.pth", "deployed.safetensors", *named)
    base.run("rdpnet", "export", "rdpnet_025_cifar", "-o", "artefacts", "--format", "torchscript")
    assert "VOC2007" in base.run("rdpnet", "sample-voc", "data", "--images", "45")


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        ("export rdpnet_025_cifar -o a --format onnx", "onnx"),
        ("export rdpnet_025_cifar -o a --format openvino", "openvino"),
        ("evaluate digits --model rdpnet_025_cifar.digits", "train"),
        ("train digits -o runs", "train"),
        ("bench table5 -o bench", "bench"),
        ("demo", "demo"),
    ],
)
def test_a_command_without_its_packages_says_in_one_line_what_to_install(
    command: str, extra: str, base: Installed
) -> None:
    printed = base.run("rdpnet", *command.split(), status=1).strip()
    assert len(printed.splitlines()) == 1 and f'pip install "rdpnet-timm[{extra}]"' in printed, printed


@pytest.mark.parametrize(
    ("installed", "command"),
    [
        ("onnx", "rdpnet export rdpnet_025_cifar -o a --format onnx"),
        ("openvino", "rdpnet export rdpnet_025_cifar -o a --format openvino"),
        ("int8", "rdpnet export rdpnet_025_cifar -o a --format onnx openvino --int8 --int8-tolerance 9"),
        ("train", "rdpnet train digits -o runs --recipe demo --epochs 0.05"),
        ("bench", "rdpnet bench table8 -o bench --quick"),
    ],
    indirect=["installed"],
)
def test_an_extra_brings_all_that_its_command_needs(installed: Installed, command: str) -> None:
    installed.run(*command.split())


def test_configs_and_recipes_are_copied_whole_and_never_over_others(base: Installed) -> None:
    base.run("rdpnet", "configs", "copies")
    for folder in ("mm_configs", "recipes"):
        ours = {path.relative_to(ROOT): path.read_bytes() for path in (ROOT / folder).rglob("*.*") if path.is_file()}
        ours = {path: content for path, content in ours.items() if "__pycache__" not in path.parts}
        ours = {path: content for path, content in ours.items() if path.suffix != ".sh"}  # it runs in a clone alone
        copied = base.folder / "copies"
        assert ours == {p.relative_to(copied): p.read_bytes() for p in (copied / folder).rglob("*.*") if p.is_file()}
    shutil.rmtree(base.folder / "copies" / "recipes")
    assert "exists, and is never overwritten" in base.run("rdpnet", "configs", "copies", status=1)
    assert not (base.folder / "copies" / "recipes").exists()


@pytest.mark.parametrize("installed", ["openmmlab"], indirect=True)
def test_openmmlab_finds_the_configs_of_the_wheel(installed: Installed) -> None:
    (installed.folder / "mine.py").write_text('_base_ = "rdpnet_timm::faster_rcnn_rdpnet_voc.py"\nmine = 1\n')
    code = """
from mmengine.config import Config
config = Config.fromfile("mine.py")
assert config.mine == 1 and config.model.backbone.widen_factor == 1.25, config
from mmdet.registry import MODELS
import rdpnet_timm.openmmlab
from mmdet.utils import register_all_modules
register_all_modules()
print(type(MODELS.build(config.model)).__name__)
(open("wrong.py", "w")).write('_base_ = "rdpnet_timm::absent.py"')
try:
    Config.fromfile("wrong.py")
except FileNotFoundError as error:
    assert "faster_rcnn_rdpnet_voc.py" in str(error)
    print("said")
"""
    printed = installed.run("python", "-W", "ignore", "-c", code)
    assert "FasterRCNN" in printed and "said" in printed
    assert "faster_rcnn_rdpnet_voc" in installed.run("python", "-m", "mim", "search", "rdpnet_timm", "--local")


def blocks(language: str) -> List[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.DOTALL | re.MULTILINE)


# what makes a command of the README short enough for a test; the rest of it is run as it is written there
SHORTER = {
    "rdpnet train": "--epochs 0.05",
    "rdpnet sample-voc": "--images 45",
    "mim train mmdet": "--cfg-options train_cfg.max_epochs=1 train_dataloader.dataset.times=1 "
    "train_dataloader.dataset.dataset.indices=4 val_dataloader.dataset.indices=2 train_dataloader.num_workers=0 "
    "train_dataloader.persistent_workers=False val_dataloader.num_workers=0 val_dataloader.persistent_workers=False",
    "mim train mmsegmentation": "--cfg-options train_cfg.max_iters=1 train_cfg.val_interval=1 "
    "train_dataloader.batch_size=2 train_dataloader.dataset.indices=4 val_dataloader.dataset.indices=2 "
    "train_dataloader.num_workers=0 train_dataloader.persistent_workers=False val_dataloader.num_workers=0 "
    "val_dataloader.persistent_workers=False",
}


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("installed", ["dev"], indirect=True)
def test_every_command_of_the_readme_works_from_the_wheel(installed: Installed) -> None:
    commands = [line.split("  #")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    ours = [
        command for command in commands if not command.startswith(("make ", "pip install "))
    ]  # these are of a clone
    assert len(ours) >= 10 and not [c for c in ours if not c.startswith(("rdpnet ", "mim "))], ours
    Image.new("RGB", (64, 48), "green").save(installed.folder / "picture.jpg")
    for command in ours:
        words = " ".join(command.split()).split()
        extra = next((more for start, more in SHORTER.items() if " ".join(words).startswith(start)), "")
        if words[0] == "mim":
            words = ["python", "-W", "ignore", "-m", *words]
        installed.run(*words, *extra.split())
    assert list(installed.folder.glob("artefacts/*.onnx")) and list(installed.folder.glob("work_dirs/*/*.pth"))


def test_the_example_of_the_readme_prints_what_it_says(base: Installed) -> None:
    (code,), (printed,) = blocks("python"), blocks("text")
    assert base.run("python", "-c", code) == printed
