"""The fused train step in fresh processes: several that start at once, no place for a cache, DDP."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

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


def test_processes_of_different_dtypes_do_not_take_each_others_code(tmp_path, monkeypatch):
    import numba
    from numba.core.caching import IndexDataCacheFile

    def total():  # as a new process has it
        scope = {"__name__": "summing", "__file__": str(tmp_path / "summing.py")}
        exec(compile(SUMMING, scope["__file__"], "exec"), scope)
        return scope["total"]

    (tmp_path / "summing.py").write_text(SUMMING)
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    arrays = [np.arange(10, dtype=dtype) for dtype in (np.float32, np.float64)]
    save, delayed = IndexDataCacheFile._save_data, []
    with monkeypatch.context() as at_once:  # both find an empty index, and write their files in the other order
        at_once.setattr(IndexDataCacheFile, "_load_index", lambda self: {})
        at_once.setattr(IndexDataCacheFile, "_save_data", lambda *arguments: delayed.append(arguments))
        for array in arrays:
            assert total()(array) == 45
    for arguments in reversed(delayed):
        save(*arguments)
    for _ in range(2):
        again = total()
        assert [again(array) for array in arrays] == [45, 45]
    assert sum(again.stats.cache_hits.values()) == 2


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
