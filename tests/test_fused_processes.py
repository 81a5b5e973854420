"""The fused train step in fresh processes: several that start at once, caches of all kinds, other CPUs, DDP."""

import errno
import os
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import rdpnet_timm

pytest.importorskip("numba")
pytestmark = pytest.mark.slow

STEP = """
    import torch
    from rdpnet_timm.blocks import RDPModule, set_fused
    from rdpnet_timm.fused import conditions
    torch.manual_seed(0)
    torch.set_num_threads(1)
    module = RDPModule(16, 32, 2).train()
    x, results = torch.randn(4, 16, 12, 12), []
    for fused in (True, False):
        set_fused(module, fused)
        assert module.may_fuse(x) is fused
        module.zero_grad()
        module(x).square().sum().backward()
        results.append([parameter.grad for parameter in module.parameters()])
    for a, b in zip(*results):
        assert (a - b).abs().max() <= 1e-3 * b.abs().max() + 1e-4, (a, b)
"""


def start(code, *arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(*processes):
    """What they printed."""
    outputs = [process.communicate()[0] for process in processes]
    for process, printed in zip(processes, outputs):
        assert process.returncode == 0, f"exit {process.returncode}\n{printed[-3000:]}"
    return outputs


def test_processes_that_start_at_once_compile_into_one_cache(tmp_path):
    finish(*(start(STEP, NUMBA_CACHE_DIR=str(tmp_path)) for _ in range(2)))
    assert list(tmp_path.rglob("*.nbi"))
    finish(start(STEP, NUMBA_CACHE_DIR=str(tmp_path)))  # what they have left can be read


BITS = """
    import hashlib, torch
    from rdpnet_timm.blocks import RDPModule
    torch.manual_seed(0)
    torch.set_num_threads(1)
    digest = hashlib.sha256()
    for channels, dtype in (16, torch.float32), (10, torch.float32), (16, torch.bfloat16), (16, torch.float64):
        module = RDPModule(channels, 2 * channels, 2).to(torch.promote_types(dtype, torch.float32)).train()
        x = torch.randn(4, channels, 12, 12, dtype=torch.promote_types(dtype, torch.float32), requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            assert module.may_fuse(x)
            out = module(x)
        out.float().square().sum().backward()
        for tensor in [out, x.grad, *(parameter.grad for parameter in module.parameters()), *module.buffers()]:
            digest.update(tensor.detach().double().contiguous().numpy().tobytes())
    print(digest.hexdigest())
"""


def test_code_from_the_cache_computes_the_bits_of_code_just_compiled(tmp_path):
    compiled, cached = (finish(start(BITS, NUMBA_CACHE_DIR=str(tmp_path))) for _ in range(2))
    assert compiled == cached


SUMMING = """
from rdpnet_timm.fused.jit import compiled

@compiled
def total(values):
    result = values[0]
    for i in range(1, len(values)):
        result += values[i]
    return result
"""


@pytest.fixture
def new_total(tmp_path, monkeypatch):
    """Gives the function of SUMMING as a new process has it."""
    import numba

    def total():
        scope = {"__name__": "summing", "__file__": str(tmp_path / "summing.py")}
        exec(compile(SUMMING, scope["__file__"], "exec"), scope)
        return scope["total"]

    (tmp_path / "summing.py").write_text(SUMMING)
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    return total


def test_processes_of_different_dtypes_do_not_take_each_others_code(new_total, monkeypatch):
    from numba.core.caching import IndexDataCacheFile

    arrays = [np.arange(10, dtype=dtype) for dtype in (np.float32, np.float64)]
    save, delayed = IndexDataCacheFile._save_data, []
    with monkeypatch.context() as at_once:  # both find an empty index, and write their files in the other order
        at_once.setattr(IndexDataCacheFile, "_load_index", lambda self: {})
        at_once.setattr(IndexDataCacheFile, "_save_data", lambda *arguments: delayed.append(arguments))
        for array in arrays:
            assert new_total()(array) == 45
    for arguments in reversed(delayed):
        save(*arguments)
    for _ in range(2):
        again = new_total()
        assert [again(array) for array in arrays] == [45, 45]
    assert sum(again.stats.cache_hits.values()) == 2


def test_a_full_disk_stops_no_training(new_total, tmp_path, monkeypatch):
    from numba.core.caching import IndexDataCacheFile

    def fail(self, name, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(IndexDataCacheFile, "_save_data", fail)
    for _ in range(2):  # the second finds an index of a file that is not there
        assert new_total()(np.arange(10)) == 45
    assert list(tmp_path.rglob("*.nbi")) and not list(tmp_path.rglob("*.nbc"))


MASKING = """
    import numpy as np
    from room.vector_loops import masked_gradient
    maps, totals = np.ones((1, 2, 2, 16), np.float32), np.zeros((1, 16))
    masked_gradient(0, 1, 0, maps, maps, np.empty_like(maps), totals)
    print(totals.sum(), sum(masked_gradient.stats.cache_hits.values()))
"""


def test_code_is_compiled_again_where_any_file_of_the_room_has_changed(tmp_path):
    room = tmp_path / "room"
    shutil.copytree(f"{rdpnet_timm.__path__[0]}/fused", room, ignore=shutil.ignore_patterns("__pycache__"))
    environment = dict(PYTHONPATH=str(tmp_path), NUMBA_CACHE_DIR=str(tmp_path / "cache"))
    assert [finish(start(MASKING, **environment)) for _ in range(2)] == [["64.0 0\n"], ["64.0 1\n"]]
    lanes = (room / "lanes.py").read_text()
    (room / "lanes.py").write_text(lanes.replace('compare(">", value', 'compare("<", value'))
    assert finish(start(MASKING, **environment)) == ["0.0 0\n"]


CPU = """
    import torch
    from rdpnet_timm.blocks import RDPModule
    module, x = RDPModule(16, 32).train(), torch.randn(4, 16, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert module.may_fuse(x)
        module(x).sum().backward()
    from rdpnet_timm.fused import lanes, tiles
    print(lanes.REGISTER, lanes.HAS_BFLOAT16, tiles.are_usable())
"""


@pytest.mark.parametrize(
    ("name", "value"), [("CPU_NAME", "generic"), ("CPU_FEATURES", "+sse4.2"), ("ENABLE_AVX", "0")], ids=str
)
def test_loops_keep_to_the_cpu_that_numba_compiles_for(tmp_path, name, value):
    environment = {f"NUMBA_{name}": value, "NUMBA_CACHE_DIR": str(tmp_path)}
    assert finish(start(CPU, **environment)) == ["16 False False\n"]


DISABLED = """
    import torch
    from rdpnet_timm.blocks import RDPModule
    print(RDPModule(16, 32).train()(torch.randn(4, 16, 16, 16)).shape)
"""


def test_where_numba_is_told_not_to_compile_training_says_so_and_goes_branch_by_branch():
    (printed,) = finish(start(DISABLED, NUMBA_DISABLE_JIT="1"))
    assert "branch by branch (NUMBA_DISABLE_JIT is set" in printed and "torch.Size([4, 32, 16, 16])" in printed


NO_CACHE = """
    from numba.core.caching import CompileResultCacheImpl
    CompileResultCacheImpl._locator_classes = []  # as where neither the package's folder nor the user's can be written
    from rdpnet_timm.fused.jit import compiled, compiled_sums
    for decorator in (compiled, compiled_sums):
        assert decorator(lambda a, b: a + b)(1, 2) == 3
"""


def test_without_a_place_for_a_cache_every_process_compiles_for_itself():
    finish(start(NO_CACHE))


DDP = """
    import sys, torch, torch.distributed as dist
    from rdpnet_timm.blocks import RDPModule, set_fused
    rank, store = int(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.manual_seed(0)
    module = RDPModule(16, 8, dtype=torch.float64).train()
    batches = torch.randn(2, 4, 16, 9, 9, dtype=torch.float64)
    ddp = torch.nn.parallel.DistributedDataParallel(module)
    assert module.may_fuse(batches[rank])
    for _ in range(2):
        ddp.zero_grad()
        ddp(batches[rank]).square().mean().backward()
    other = set_fused(RDPModule(16, 8, dtype=torch.float64).train(), False)
    other.load_state_dict(module.state_dict())
    mean = [0] * len(list(other.parameters()))
    for batch in batches:
        other.zero_grad()
        other(batch).square().mean().backward()
        mean = [a + p.grad / 2 for a, p in zip(mean, other.parameters())]
    for expected, parameter in zip(mean, module.parameters()):
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-9, atol=1e-12)
    dist.destroy_process_group()
"""


def test_two_processes_of_ddp_have_the_branches_mean_gradient(tmp_path):
    finish(*(start(DDP, rank, tmp_path / "store") for rank in range(2)))
