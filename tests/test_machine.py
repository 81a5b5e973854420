"""What the machine is and can do."""

from pathlib import Path

import pytest

from rdpnet_timm.measure import machine


@pytest.mark.parametrize(
    ("flags", "limit", "vnni", "bfloat16"),
    [
        ("", None, False, False),  # Windows, or a Mac of Intel's: who knows
        ("sse2 avx2", None, False, False),
        ("sse2 avx2 avx_vnni", None, True, False),
        ("sse2 avx512_vnni amx_int8", None, True, False),
        ("sse2 avx512_vnni avx512_bf16", None, True, True),
        ("sse2 avx512_vnni avx512_bf16", "AVX2", False, False),
        ("sse2 avx512_vnni avx512_bf16 amx_bf16", "AVX512_CORE_VNNI", True, False),
        ("sse2 avx512_vnni avx512_bf16", "AVX512_CORE_BF16", True, True),
        ("asimd asimddp bf16", None, True, True),
    ],
)
def test_who_sums_int8_products_in_16_bits_and_who_multiplies_bfloat16(flags, limit, vnni, bfloat16, monkeypatch):
    monkeypatch.setattr(machine, "cpu_flags", lambda: frozenset(flags.split()))
    monkeypatch.setattr(machine.platform, "machine", lambda: "aarch64" if "asimd" in flags else "AMD64")
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if limit:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert (machine.has_vnni(), machine.has_bfloat16()) == (vnni, bfloat16)


@pytest.mark.parametrize(
    ("lscpu", "name"),
    [
        ("Vendor ID:   ARM\nModel name:   Neoverse-V1\n", "Neoverse-V1"),
        ("Vendor ID:   ARM\nModel name:   -\n", "aarch64, CPU implementer 0x41, part 0xd40"),
        (None, "aarch64, CPU implementer 0x41, part 0xd40"),
    ],
)
def test_an_arm_cpu_has_the_name_that_lscpu_knows_or_its_number(lscpu, name, monkeypatch):
    info = "processor\t: 0\nFeatures\t: fp asimd bf16\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n\nprocessor\t: 1\n"

    def run_lscpu(command, **kwargs):
        if lscpu is None:
            raise FileNotFoundError(command[0])
        return machine.subprocess.CompletedProcess(command, 0, lscpu)

    monkeypatch.setattr(Path, "read_text", lambda path: info)
    monkeypatch.setattr(machine.subprocess, "run", run_lscpu)
    monkeypatch.setattr(machine.platform, "machine", lambda: "aarch64")
    assert machine._cpu_model() == name
    assert machine.cpu_flags() == {"fp", "asimd", "bf16"}


@pytest.mark.parametrize("knows", [True, False])
def test_a_mac_names_its_cpu(knows, monkeypatch):
    def sysctl(command, **kwargs):
        if not knows:
            raise machine.subprocess.CalledProcessError(1, command)
        return machine.subprocess.CompletedProcess(command, 0, "Apple M2\n")

    monkeypatch.setattr(machine, "_cpu_info", dict)
    monkeypatch.setattr(machine.subprocess, "run", sysctl)
    monkeypatch.setattr(machine.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(machine.platform, "processor", lambda: "arm")
    assert machine._cpu_model() == ("Apple M2" if knows else "arm")


def test_the_cores_that_are_told_are_those_that_the_process_may_use(monkeypatch):
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 64)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: {3, 5, 7}, raising=False)
    monkeypatch.setattr(machine, "_CGROUP", Path("absent"))
    assert machine.describe()["cores"] == 3


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "350000 100000\n"}, 3),  # a fourth would stand still half of the time
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "6400000 100000\n"}, 64),
        ({"cpu.max": "max 100000\n"}, 64),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
    ],
)
def test_a_containers_quota_is_a_number_of_cores(files, expected, tmp_path, monkeypatch):
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    assert machine.cores() == expected
    machine.require_threads(1, expected)
    with pytest.raises(ValueError, match=f"must be 1 to {expected}, the cores here, got {expected + 1}"):
        machine.require_threads(expected + 1)


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="needs Linux")
@pytest.mark.parametrize(("limit", "expected"), [("max\n", None), ("1048576\n", 2**20)])
def test_memory_is_the_machines_or_a_containers_limit(limit, expected, monkeypatch):
    whole = int(Path("/proc/meminfo").read_text().split()[1]) * 1024  # MemTotal, in kB
    monkeypatch.setattr(Path, "read_text", lambda path: limit)
    assert machine.memory() == (expected or whole)
