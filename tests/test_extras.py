"""What a command needs is checked before it starts, and a base install does what needs no more than itself."""

import subprocess
import sys
import textwrap

import pytest

from rdpnet_timm.extras import require_all

HIDDEN = [
    "ai_edge_litert", "executorch", "matplotlib", "mim", "mmcv", "mmdet", "mmengine", "mmseg", "ncnn", "nncf", "numba",
    "onnx", "onnxruntime", "onnxscript", "openvino", "psutil", "pyarrow", "rich", "sklearn", "torchao",
]  # fmt: skip


def in_a_base_install(code, folder):
    """Run code in an interpreter that has torch, torchvision, timm and what these bring, and nothing else."""
    hide = f"""
        import sys
        HIDDEN = set({HIDDEN})
        class Hiding:
            def __init__(self, finder): self.finder = finder
            def __getattr__(self, name): return getattr(self.finder, name)
            def find_spec(self, name, path=None, target=None):
                return None if name.partition(".")[0] in HIDDEN else self.finder.find_spec(name, path, target)
        sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
        from rdpnet_timm.cli import main
        """
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(hide) + textwrap.dedent(code)],
        cwd=folder,
        capture_output=True,
        text=True,
    )


def test_what_torch_alone_can_write_needs_nothing_else(tmp_path):
    formats = ["--format", "torchscript", "torch-export"]
    code = f"""
        status = main(["export", "rdpnet_025_cifar", "-o", "out", *{formats}])
        status += main(["verify", "rdpnet_025_cifar"])
        status += main(["info", "rdpnet_025", "--input-size", "3", "32", "32"])
        sys.exit(status)
        """
    done = in_a_base_install(code, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "rdpnet_025_cifar.torchscript.pt" in done.stdout and "rdpnet_025_cifar.pt2" in done.stdout
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_a_command_names_all_that_is_missing_before_it_starts(tmp_path):
    expected = [
        ("export rdpnet_025_cifar -o out", "onnx and onnxruntime", "onnx"),
        ("export rdpnet_025_cifar -o out --format onnx ncnn torchscript onnx", "pnnx and ncnn", "ncnn"),
        ("export absent.pth -o out --format openvino --int8", "onnx and openvino and nncf", "int8"),
        ("demo -o out", "rich and sklearn and matplotlib and mim and mmcv", "demo"),
        ("train digits -o out", "matplotlib and rich", "train"),
        ("table 3 digits -o out", "matplotlib and rich", "train"),
        ("bench table8 -o out --backend eager", "matplotlib and psutil and rich", "bench"),
        ("bench table8 -o out", "onnx and onnxruntime", "bench"),
    ]
    done = in_a_base_install(f"for line, *_ in {expected}: assert main(line.split()) == 1, line", tmp_path)
    assert done.returncode == 0 and not done.stdout and not list(tmp_path.iterdir()), done.stdout + done.stderr
    errors = done.stderr.splitlines()
    assert len(errors) == len(expected), done.stderr
    for (line, named, extra), error in zip(expected, errors):
        assert f"needs {named}" in error and f'pip install "rdpnet-timm[{extra}]"' in error, (line, error)
    assert errors[1].count("the format onnx needs") == 1, "each format's packages are named, not the first one's alone"


def test_what_is_there_is_not_imported():
    require_all(["this", "torch"], "a test")
    assert "this" not in sys.modules
    with pytest.raises(ImportError, match=r'^a test needs no_such_a and no_such_b: pip install "rdpnet-timm\[x\]"$'):
        require_all(["torch", "no_such_a", "no_such_b", "no_such_a"], "a test", "x")
