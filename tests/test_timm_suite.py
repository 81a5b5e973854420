"""timm's own model tests, from its source distribution, on the twelve models; docs/timm.md says how to get them."""

import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

import pytest
import timm

TESTS = os.environ.get("RDPNET_TIMM_TESTS")
FILES = ["test_models.py", "test_model_input.py", "test_utils.py"]
EVERY_MODEL = {
    "test_model_forward",
    "test_model_backward",
    "test_model_default_cfgs",
    "test_model_forward_torchscript",
    "test_model_forward_features",
    "test_model_forward_intermediates",
    "test_model_forward_intermediates_features",
    "test_prune_intermediate_layers_contract",
    "test_model_forward_fx",
    "test_model_backward_fx",
    "test_model_forward_fx_torchscript",
}


@pytest.mark.slow
@pytest.mark.skipif(not TESTS, reason="RDPNET_TIMM_TESTS does not name the tests folder of timm's source distribution")
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("form", ["train", "deploy"])
def test_every_model_passes_timm_s_own_tests(form, tmp_path):
    folder, report = Path(TESTS).resolve(), tmp_path / "report.xml"
    process = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "timm_suite_plugin", "-p", "no:cacheprovider", "-q", "--tb=short"]
        + ["-c", str(folder.parent / "pyproject.toml"), f"--junitxml={report}"]
        + [str(folder / file) for file in FILES],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent), "RDPNET_FORM": form, "PYTEST_ADDOPTS": ""},
        cwd=folder.parent,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.returncode == 0, process.stdout[-20_000:]
    passed = defaultdict(set)
    for case in ElementTree.parse(report).iter("testcase"):
        if not len(case):  # a case that failed or was skipped has a child that says why
            passed[case.get("name").split("[")[0]].add(re.search(r"rdpnet_\d+(_cifar)?", case.get("name")).group())
    models = set(timm.list_models("rdpnet_*"))
    missing = {test: models - passed[test] for test in EVERY_MODEL if models - passed[test]}
    assert len(models) == 12
    assert not missing
