"""Files are written whole or not at all, whatever ends the writing; an error names the file and says what is wrong."""

import errno
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import safetensors.torch
import timm
import torch

from rdpnet_timm.checkpoint import save_model
from rdpnet_timm.files import all_or_nothing, atomic_path, read_lines


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_full_disk_is_called_one_and_left_clean_by_weights(small_disk, suffix):
    model = timm.create_model("rdpnet_025_cifar")
    with pytest.raises(OSError, match=rf"cannot write '.*/disk/w\{suffix}': the disk is full") as raised:
        save_model(model, small_disk / f"w{suffix}", "rdpnet_025_cifar", {})
    assert raised.value.errno == errno.ENOSPC and not list(small_disk.iterdir())


def test_a_full_disk_is_called_one_and_left_clean_by_an_export(small_disk):
    formats = ["onnx", "openvino", "torch-export", "torchscript"]
    # in a process of its own: torch's own writers end it
    code = f"""
        import timm
        from rdpnet_timm.deploy import export
        for name in {formats}:
            try:
                export(timm.create_model("rdpnet_025_cifar"), {str(small_disk)!r} + "/" + name, [name], rounds=1)
            except OSError as error:
                print(error)
        """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) == len(formats), done.stdout + done.stderr[-2000:]
    for name, line in zip(formats, lines):
        assert f"/{name}': the disk is full" in line, line
    assert not list(small_disk.iterdir())


def failing(kind, temporary):
    if kind == "the system's own":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if kind == "wrapped":
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            raise RuntimeError("unexpected pos 64 vs 0") from None
    raise RuntimeError(f"cannot serialise to {temporary}")


@pytest.mark.parametrize("kind", ["the system's own", "wrapped"])
def test_a_full_disk_is_recognised_behind_other_words(kind, tmp_path):
    with (
        pytest.raises(OSError, match=r"cannot write '.*file\.pth': the disk is full"),
        atomic_path(tmp_path / "file.pth") as temporary,
    ):
        failing(kind, temporary)
    with (
        pytest.raises(OSError, match=r"cannot write '.*out': the disk is full"),
        all_or_nothing(tmp_path / "out") as folder,
    ):
        failing(kind, folder)
    assert not list(tmp_path.iterdir())


def test_an_error_names_the_file_that_was_asked_for(tmp_path):
    with (
        pytest.raises(RuntimeError, match=r"cannot serialise to \S*/file\.pth$"),
        atomic_path(tmp_path / "file.pth") as temporary,
    ):
        failing("other", temporary)
    with pytest.raises(RuntimeError, match=r"cannot serialise to \S*/out$"), all_or_nothing(tmp_path / "out") as folder:
        failing("other", folder)
    with (
        pytest.raises(FileNotFoundError, match=r"'\S*/absent/file\.pth'"),
        atomic_path(tmp_path / "absent" / "file.pth"),
    ):
        pass
    with pytest.raises(FileNotFoundError, match=r"'\S*/out/none'"), all_or_nothing(tmp_path / "out") as folder:
        (folder / "none").read_text()
    assert not list(tmp_path.iterdir())


def test_an_export_that_fails_leaves_what_another_has_written_into_its_folder(tmp_path):
    output = tmp_path / "new" / "folder"
    with pytest.raises(RuntimeError), all_or_nothing(output):
        with all_or_nothing(output) as other:
            (other / "good.onnx").write_text("whole")
        raise RuntimeError("the first differs")
    assert [path.name for path in output.iterdir()] == ["good.onnx"]


def test_an_export_moves_no_file_where_a_folder_has_the_name_of_one(tmp_path):
    (tmp_path / "b").mkdir()
    refused = pytest.raises(IsADirectoryError, match=r"cannot write '\S*/b': it is a folder")
    with refused, all_or_nothing(tmp_path) as scratch:
        for name in "abc":
            (scratch / name).write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_terminated_export_leaves_nothing(tmp_path):
    # the command is stopped while it writes, which a writer that waits makes sure of
    code = f"""
        import sys, time
        from rdpnet_timm.cli import main
        from rdpnet_timm.deploy import formats
        def wait(*args):
            print("writing", flush=True)
            time.sleep(100)
        formats.FORMATS["torchscript"] = formats.FORMATS["torchscript"]._replace(write=wait)
        sys.exit(main(["export", "rdpnet_025_cifar", "-o", {str(tmp_path / "out")!r}, "--format", "torchscript"]))
        """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "writing\n"
    assert list((tmp_path / "out").iterdir()), "it has begun"
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM and not list(tmp_path.iterdir())


def test_what_is_written_is_what_torch_and_safetensors_would_write(tmp_path):
    model = timm.create_model("rdpnet_025_cifar")
    save_model(model, tmp_path / "a.safetensors", "rdpnet_025_cifar", {})
    save_model(model, tmp_path / "a.pth", "rdpnet_025_cifar", {})
    found = safetensors.torch.load_file(tmp_path / "a.safetensors"), torch.load(tmp_path / "a.pth")["state_dict"]
    for weights in found:
        assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_a_text_in_another_encoding_is_named(tmp_path):
    for encoding in ("utf-8", "utf-8-sig"):
        (tmp_path / "names.txt").write_text("Käfer\nÖl\n", encoding=encoding)
        assert read_lines(tmp_path / "names.txt") == ["Käfer", "Öl"]
    (tmp_path / "names.txt").write_text("Käfer\nÖl\n", encoding="latin-1")
    with pytest.raises(ValueError, match=r"names.txt' is no text in UTF-8 \(.*position 1"):
        read_lines(tmp_path / "names.txt")
