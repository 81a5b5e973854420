"""The start-up hook, each promise in a fresh interpreter of its own.

Most run in a bare environment with stand-ins for timm and rdpnet_timm that import in no time: the hook must not care
what they contain. A few install the real package, as a wheel and editable, beside the real timm.
"""

import csv
import os
import subprocess
import sys
import sysconfig
import textwrap
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALL_MODELS = {
    f"rdpnet_{width}{form}" for width in ("025", "050", "075", "100", "125", "150") for form in ("", "_cifar")
}

pytestmark = [
    pytest.mark.xdist_group("autoload"),  # one worker, so that the package is installed once each way
    pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="needs the source tree to install from"),
]


class Environment:
    """A virtual environment without pip, and nothing in it yet."""

    def __init__(self, folder):
        class Builder(venv.EnvBuilder):
            def post_setup(self, context):
                self.python = context.env_exe

        builder = Builder(symlinks=os.name != "nt")
        builder.create(folder)
        self.folder, self.python = folder, builder.python
        self.site = Path(self.run("import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip())

    def write(self, files):
        for name, text in files.items():
            (self.site / name).parent.mkdir(parents=True, exist_ok=True)
            (self.site / name).write_text(textwrap.dedent(text))

    def run(self, code, *flags, fails=False, **variables):
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("RDPNET_", "PYTHONPATH"))
        }
        process = subprocess.run(
            [self.python, *flags, "-c", textwrap.dedent(code)],
            env={**inherited, **variables},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert bool(process.returncode) == fails, process.stdout + process.stderr
        return process


def real_environment(folder, *how):
    """The package installed by pip, beside everything of this environment but its own start-up files."""
    environment = Environment(folder)
    paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    environment.write({"zz_rest.pth": "\n".join(paths) + "\n"})  # paths added by a .pth have no .pth files of their own
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", environment.python, "install", *options, *how, str(ROOT)], check=True
    )
    return environment


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return real_environment(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def editable(tmp_path_factory):
    return real_environment(tmp_path_factory.mktemp("editable"), "--editable")


TIMM = {
    "timm/__init__.py": """
        import time
        time.sleep(0.05)
        __version__ = "9.9"
        models = []
        """,
}
PACKAGE = {
    "rdpnet_timm/__init__.py": """
        import timm
        from .rdpnet import registered
        """,
    "rdpnet_timm/rdpnet.py": """
        import time, timm
        time.sleep(0.05)
        timm.models.append("rdpnet")
        registered = True
        """,
}


@pytest.fixture
def bare(tmp_path):
    """An environment with the hook's two files, a stand-in for timm and one for the package."""
    environment = Environment(tmp_path / "bare")
    for suffix in ("pth", "py"):
        text = (ROOT / "rdpnet_timm" / f"autoload.{suffix}").read_text()
        (environment.site / f"rdpnet_timm_autoload.{suffix}").write_text(text)
    environment.write({**TIMM, **PACKAGE})
    return environment


PRINT_MODELS = "import timm; print(timm.models)"
LIST_MODELS = "import timm; print(*timm.list_models('rdpnet_*'))"


# The real package


def test_installed_from_a_wheel_timm_knows_the_models_even_isolated(wheel):
    code = """
        import timm
        print(*timm.list_models("rdpnet_*"))
        import importlib.resources, inspect, pickle, sys
        assert timm.create_model("rdpnet_025", num_classes=3).num_classes == 3
        assert importlib.resources.files("timm").joinpath("version.py").is_file()
        assert "create_model" in inspect.getsource(timm)
        assert "exec_module" not in vars(timm.__spec__.loader)
        assert pickle.loads(pickle.dumps(timm.__spec__)) == timm.__spec__
        print(sys.modules["rdpnet_timm"].__file__)
        """
    models, file = wheel.run(code, "-I").stdout.splitlines()
    assert set(models.split()) == ALL_MODELS
    assert Path(file).parent.parent == wheel.site


def test_installed_editable_timm_knows_the_models(editable):
    models, file = editable.run(LIST_MODELS + "; import rdpnet_timm; print(rdpnet_timm.__file__)").stdout.splitlines()
    assert set(models.split()) == ALL_MODELS
    assert Path(file).parent == ROOT / "rdpnet_timm"


def test_an_uninstall_removes_the_hook(wheel, editable):
    for environment in (wheel, editable):
        (record,) = environment.site.glob("rdpnet_timm-*.dist-info/RECORD")
        recorded = {row[0] for row in csv.reader(record.open())}
        assert {"rdpnet_timm_autoload.pth", "rdpnet_timm_autoload.py"} <= recorded
        assert not any(name.startswith("rdpnet_timm/") and name.endswith(".pth") for name in recorded)


def test_the_hook_imports_nothing_but_itself_at_start_up(wheel):
    code = "import sys; print(*sys.modules)"
    on, off = (set(wheel.run(code, RDPNET_AUTOLOAD=value).stdout.split()) for value in ("1", "0"))
    assert on - off == {"rdpnet_timm_autoload"}
    assert not off - on


def test_a_timm_without_what_the_models_need_still_imports_with_a_warning(wheel, tmp_path):
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm" / "__init__.py").write_text("__version__ = '0.1'")
    process = wheel.run("import timm; print(timm.__version__)", PYTHONPATH=str(tmp_path))
    assert process.stdout == "0.1\n"
    assert (
        "RuntimeWarning: the rdpnet models could not be registered with timm 0.1: ModuleNotFoundError" in process.stderr
    )


def test_timm_has_the_models_when_two_threads_import_in_the_order_of_a_deadlock(wheel):
    # One thread holds the lock of rdpnet_timm and wants timm; the other is in timm, whose hook wants rdpnet_timm.
    code = """
        import sys, threading
        from importlib.machinery import PathFinder

        package_locked, inside_timm, seen = threading.Event(), threading.Event(), {}

        class Gate:
            def find_spec(self, name, path=None, target=None):
                if name == "timm.version":
                    inside_timm.set()
                if name != "rdpnet_timm":
                    return None
                spec = PathFinder.find_spec(name, path, target)
                execute = spec.loader.exec_module

                def exec_module(module):
                    package_locked.set()
                    assert inside_timm.wait(200)
                    execute(module)

                spec.loader.exec_module = exec_module
                return spec

        def import_package():
            import rdpnet_timm
            import timm
            seen["package"] = len(timm.list_models("rdpnet_*")), rdpnet_timm.RDPNet.__name__

        def import_timm():
            assert package_locked.wait(200)
            import timm
            seen["timm"] = len(timm.list_models("rdpnet_*"))

        sys.meta_path.insert(0, Gate())
        threads = [threading.Thread(target=work) for work in (import_package, import_timm)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        print(seen["timm"], seen["package"])
        """
    process = wheel.run(code)
    assert process.stdout == "12 (12, 'RDPNet')\n", process.stderr
    assert process.stderr == ""


LIGHT = "import sys, rdpnet_timm; assert not {'torch', 'timm', 'numpy'} & set(sys.modules), 'imported'; "
COUNT = "import timm; print(len(timm.list_models('rdpnet_*')))"


@pytest.mark.parametrize(
    ("switch", "code"),
    [
        ("0", LIGHT),
        ("1", LIGHT + "rdpnet_timm.reparameterize; rdpnet_timm.blocks.DepthBlock; "),
        ("0", "from rdpnet_timm import *; RDPNet, verify; from rdpnet_timm import blocks; "),
        ("1", "from rdpnet_timm.rdpnet import RDPNet; "),
        ("0", "import timm, rdpnet_timm; "),
    ],
)
def test_importing_the_package_is_light_and_registers_all_the_same(wheel, switch, code):
    process = wheel.run(code + COUNT, RDPNET_AUTOLOAD=switch)
    assert (process.stdout, process.stderr) == ("12\n", "")


def test_the_package_imported_while_another_thread_is_in_timm_waits_for_it_where_the_hook_is_off(wheel):
    code = """
        import sys, threading
        inside_timm, imported = threading.Event(), threading.Event()

        class Gate:
            def find_spec(self, name, path=None, target=None):
                if name == "timm.version":
                    inside_timm.set()
                    imported.wait(5)  # the other thread stands in the import of the package by now
                return None

        def import_timm():
            import timm

        sys.meta_path.insert(0, Gate())
        thread = threading.Thread(target=import_timm)
        thread.start()
        assert inside_timm.wait(200)
        import rdpnet_timm
        imported.set()
        thread.join()
        import timm
        print(len(timm.list_models("rdpnet_*")))
        """
    process = wheel.run(code, RDPNET_AUTOLOAD="0")
    assert (process.stdout, process.stderr) == ("12\n", "")


def test_the_package_imported_by_hand_leaves_mmcv_alone_where_the_hook_is_off(wheel, tmp_path):
    (tmp_path / "mmcv").mkdir()
    (tmp_path / "mmcv" / "__init__.py").touch()
    code = "import rdpnet_timm, importlib.util; print(importlib.util.find_spec('mmcv._ext'))"
    found = [wheel.run(code, RDPNET_AUTOLOAD=value, PYTHONPATH=str(tmp_path)).stdout for value in ("0", "1")]
    assert found[0] == "None\n" and "mmcv_ext.py" in found[1]


# The hook alone


@pytest.mark.parametrize("flags", [[], ["-I"], ["-E"], ["-s"], ["-O"]])
def test_importing_timm_registers_once(bare, flags):
    assert bare.run(PRINT_MODELS, *flags).stdout == "['rdpnet']\n"


def test_importing_the_package_first_registers_once(bare):
    assert bare.run("import rdpnet_timm; " + PRINT_MODELS).stdout == "['rdpnet']\n"


def test_importing_a_submodule_of_timm_registers(bare):
    bare.write({"timm/data.py": "import timm; models = list(timm.models)"})
    assert bare.run("from timm.data import models; print(models)").stdout == "['rdpnet']\n"


def test_the_switch_leaves_no_trace(bare):
    code = PRINT_MODELS + "; import sys; print('rdpnet_timm_autoload' in sys.modules, 'rdpnet_timm' in sys.modules)"
    assert bare.run(code, RDPNET_AUTOLOAD="0").stdout == "[]\nFalse False\n"


def test_a_failing_timm_fails_as_it_would_alone(bare):
    bare.write({"timm/__init__.py": "raise OSError('libtorch.so is missing')"})
    with_hook, without = (bare.run("import timm", fails=True, RDPNET_AUTOLOAD=value) for value in ("1", "0"))
    assert with_hook.stderr.splitlines()[-1] == without.stderr.splitlines()[-1] == "OSError: libtorch.so is missing"


def test_a_missing_timm_is_missing(bare):
    (bare.site / "timm/__init__.py").unlink()
    (bare.site / "timm").rmdir()
    assert "ModuleNotFoundError: No module named 'timm'" in bare.run("import timm", fails=True).stderr


@pytest.mark.parametrize("flags", [[], ["-W", "error"]])
def test_a_failing_registration_is_a_warning_that_says_what_failed(bare, flags):
    bare.write({"rdpnet_timm/rdpnet.py": "from timm import register_model"})
    process = bare.run(PRINT_MODELS, *flags)
    assert process.stdout == "[]\n"
    assert "could not be registered with timm 9.9: ImportError: cannot import name 'register_model'" in process.stderr
    assert "RDPNET_AUTOLOAD=0" in process.stderr


def test_an_import_interrupted_by_the_user_stays_interrupted(bare):
    bare.write({"rdpnet_timm/rdpnet.py": "raise KeyboardInterrupt"})
    assert "KeyboardInterrupt" in bare.run("import timm", fails=True).stderr


@pytest.mark.parametrize("text", [None, "raise ValueError", "def install(:"])
def test_python_starts_in_silence_with_a_damaged_hook(bare, text):
    file = bare.site / "rdpnet_timm_autoload.py"
    file.write_text(text) if text else file.unlink()
    process = bare.run(PRINT_MODELS)
    assert (process.stdout, process.stderr) == ("[]\n", "")


def test_a_timm_imported_before_the_hook_gets_the_models_at_once(bare):
    code = (
        "import timm; assert timm.models == []; import rdpnet_timm_autoload as hook; hook.install(); print(timm.models)"
    )
    assert bare.run(code, RDPNET_AUTOLOAD="0").stdout == "['rdpnet']\n"


def test_installing_twice_is_installing_once(bare):
    code = """
        import sys, rdpnet_timm_autoload
        finders = list(sys.meta_path)
        rdpnet_timm_autoload.install()
        print(sys.meta_path == finders)
        """
    assert bare.run(code).stdout == "True\n"


def test_looking_for_timm_without_importing_it_registers_nothing(bare):
    code = """
        import sys
        from importlib.util import find_spec
        spec = find_spec("timm")
        print("rdpnet_timm" in sys.modules, spec.origin)
        """
    assert bare.run(code).stdout.split() == ["False", str(bare.site / "timm" / "__init__.py")]


def test_reload_and_a_deleted_module_work(bare):
    code = """
        import importlib, sys, timm
        importlib.reload(timm)
        print(timm.__version__, "exec_module" in vars(timm.__spec__.loader))
        del sys.modules["timm"]
        import timm
        print(timm.__version__)
        """
    assert bare.run(code).stdout == "9.9 False\n9.9\n"


def test_timm_in_a_zip_archive_registers(bare):
    code = """
        import shutil, sys, os
        site = os.path.dirname(sys.modules["rdpnet_timm_autoload"].__file__)
        archive = shutil.make_archive("timm", "zip", site, "timm")
        shutil.rmtree(os.path.join(site, "timm"))
        sys.path.append(archive)
        import timm
        print(timm.models, "timm.zip" in timm.__file__)
        """
    assert bare.run(code).stdout == "['rdpnet'] True\n"


def test_finders_behind_the_hook_are_asked(bare):
    # setuptools puts the finder of an editable timm at the end of the meta path; finders of old have no find_spec.
    bare.write({"elsewhere/timm.py": "models = []"})
    code = """
        import importlib.util, os, shutil, sys
        site = os.path.dirname(sys.modules["rdpnet_timm_autoload"].__file__)
        shutil.rmtree(os.path.join(site, "timm"))

        class Finder:
            @staticmethod
            def find_spec(name, path=None, target=None):
                if name == "timm":
                    return importlib.util.spec_from_file_location(name, os.path.join(site, "elsewhere", "timm.py"))

        sys.meta_path += [object(), Finder]
        import timm
        print(timm.models)
        """
    assert bare.run(code).stdout == "['rdpnet']\n"


@pytest.mark.parametrize("first", ["timm", "rdpnet_timm"])
def test_many_threads_importing_at_once_all_see_the_models(bare, first):
    code = f"""
        import importlib, sys, threading
        sys.setswitchinterval(1e-5)
        seen = []

        def work(name):
            module = importlib.import_module(name)
            if name == "timm":
                seen.append(list(module.models))
            else:
                seen.append(list(sys.modules["timm"].models) if module.registered else None)

        names = ["{first}"] + ["timm", "rdpnet_timm"] * 8
        threads = [threading.Thread(target=work, args=(name,)) for name in names]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
        print(len(seen), all(models == ["rdpnet"] for models in seen) or seen)
        """
    process = bare.run(code)
    assert process.stdout == "17 True\n", process.stderr
    assert process.stderr == ""


def test_a_spawned_process_knows_the_models(bare):
    bare.write({"work.py": "def models(_):\n    import timm\n    return timm.models"})
    code = """
        import multiprocessing, work
        if __name__ == "__main__":
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                print(pool.map(work.models, [0]))
        """
    assert bare.run(code).stdout == "[['rdpnet']]\n"


# The operators of mmcv

MMCV = {"mmcv/__init__.py": "", "rdpnet_timm/openmmlab/mmcv_ext.py": "name = __name__"}
IMPORT_EXT = """
    import importlib, sys
    extension = importlib.import_module("mmcv._ext")
    print(extension.name, "rdpnet_timm" in sys.modules, "timm" in sys.modules)
    """


def test_mmcv_without_operators_gets_the_stand_in_and_nothing_else_is_imported(bare):
    bare.write(MMCV)
    assert bare.run(IMPORT_EXT).stdout == "mmcv._ext False False\n"


def test_compiled_operators_of_mmcv_come_first(bare):
    bare.write({**MMCV, "mmcv/_ext.py": "name = 'compiled'"})
    assert bare.run(IMPORT_EXT).stdout == "compiled False False\n"


@pytest.mark.parametrize("switch", ["RDPNET_MMCV_EXT", "RDPNET_AUTOLOAD"])
def test_each_switch_leaves_mmcv_without_the_stand_in(bare, switch):
    bare.write(MMCV)
    assert "No module named 'mmcv._ext'" in bare.run(IMPORT_EXT, fails=True, **{switch: "0"}).stderr


def test_mmcv_without_operators_stays_so_where_the_package_is_gone(bare):
    bare.write({"mmcv/__init__.py": ""})
    assert "No module named 'mmcv._ext'" in bare.run(IMPORT_EXT, fails=True).stderr
