"""The start-up import hook: ``import timm`` knows the models without an import of this package.

timm has no plugin entry points. So the wheel ships ``rdpnet_timm_autoload.pth``, a line that Python runs when it
starts, and this file once more as the top-level module ``rdpnet_timm_autoload``, which that line imports: importing
``rdpnet_timm.autoload`` would import the package at every start of Python. Nothing is imported here before somebody
asks for timm, mmcv or mmengine's configs. ``RDPNET_AUTOLOAD=0`` switches that off; importing ``rdpnet_timm`` installs
the hook as well.
"""

import sys

TYPE_CHECKING = False  # importing typing costs more than the whole hook
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any, Optional

__all__ = ["install"]


class _Finder:
    """A meta path finder for three names.

    Behind ``timm`` the models are registered, and behind ``mmengine.config.config`` the configs of this package are
    made known. ``mmcv._ext`` are mmcv's compiled operators. Where they are not compiled, as in mmcv-lite, the finder
    answers with ``rdpnet_timm/openmmlab/mmcv_ext.py``, unless ``RDPNET_MMCV_EXT=0``, or ``mmcv`` is
    False.
    """

    def __init__(self, mmcv: bool = True) -> None:
        self.names = ("timm", "mmengine.config.config", *(("mmcv._ext",) if mmcv else ()))

    def find_spec(self, name: str, path: "Any" = None, target: "Optional[ModuleType]" = None) -> "Optional[ModuleSpec]":
        if name not in self.names:
            return None
        spec = self._find_behind(name, path, target)
        if name == "mmcv._ext":
            return spec or self._mmcv_ext()
        if spec is not None and hasattr(spec.loader, "exec_module"):
            _call_behind(spec.loader, name, _register if name == "timm" else _find_configs)
        return spec

    def _find_behind(self, name: str, path: "Any", target: "Optional[ModuleType]" = None) -> "Optional[ModuleSpec]":
        """What the finders behind this one on the meta path find."""
        finders = list(sys.meta_path)
        for finder in finders[finders.index(self) + 1 :] if self in finders else ():
            find_spec = getattr(finder, "find_spec", None)
            spec = find_spec(name, path, target) if find_spec else None
            if spec is not None:
                return spec
        return None

    def _mmcv_ext(self) -> "Optional[ModuleSpec]":
        import os
        from importlib.util import spec_from_file_location

        package = self._find_behind("rdpnet_timm", None)
        if os.environ.get("RDPNET_MMCV_EXT") == "0" or package is None:
            return None
        for folder in package.submodule_search_locations or ():
            file = os.path.join(folder, "openmmlab", "mmcv_ext.py")
            if os.path.isfile(file):
                return spec_from_file_location("mmcv._ext", file)
        return None


def _call_behind(loader: "Any", name: str, call: "Any") -> None:
    """Make ``loader`` call ``call`` with the module ``name`` once it has executed it.

    Only this instance's method is replaced, and for one call: the loader's class stays what inspect and
    importlib.resources expect, and it can still be pickled.
    """
    execute = loader.exec_module

    def exec_module(module: "ModuleType") -> None:
        vars(loader).pop("exec_module", None)
        execute(module)
        if module.__name__ == name:  # a zip archive has one loader for all its modules
            call(module)

    loader.exec_module = exec_module


def _register(timm: "ModuleType") -> None:
    """Register the models; a failure becomes a warning, so that ``import timm`` never fails on our account."""
    try:
        try:
            import rdpnet_timm
        except RuntimeError as error:
            # Another thread is importing the package, and waits for timm, which this one holds. Python found that out,
            # and from now on gives us the package as far as it is.
            if type(error).__name__ != "_DeadlockError":
                raise
        # Named again because in that case, and where the package's own import of timm led here, it is not complete.
        import rdpnet_timm.rdpnet  # noqa: F401
    except Exception as error:
        import warnings

        message = (
            f"the rdpnet models could not be registered with timm {getattr(timm, '__version__', '(unknown version)')}: "
            f"{type(error).__name__}: {error}. timm itself works as ever; RDPNET_AUTOLOAD=0 keeps rdpnet-timm out of it"
        )
        try:
            warnings.warn(message, RuntimeWarning, stacklevel=2)
        except RuntimeWarning:  # warnings are errors here, and this one must not be
            print(message, file=sys.stderr)


def _find_configs(config: "ModuleType") -> None:
    """Let ``_base_ = "rdpnet_timm::FILE"`` be a config of this package, given mmengine's module ``config``.

    mmengine has a fixed list of the packages whose configs it knows, and looks for them beside the metadata of an
    installed wheel, where a source tree has none.
    """
    find = getattr(getattr(config, "Config", None), "_get_cfg_path", None)
    if find is None or hasattr(find, "__wrapped__"):  # another mmengine, or done already
        return

    def _get_cfg_path(cfg_path: str, filename: str) -> "Any":
        if not cfg_path.startswith("rdpnet_timm::"):
            return find(cfg_path, filename)
        from rdpnet_timm.files import configs

        path = configs() / cfg_path.partition("::")[2]
        if not path.is_file():
            known = ", ".join(sorted(file.name for file in configs().glob("*.py")))
            raise FileNotFoundError(f"rdpnet-timm has no config '{cfg_path}', in {filename}; it has {known}")
        return str(path), None  # no scope: the types in it are those of mmengine's root registries

    setattr(_get_cfg_path, "__wrapped__", find)  # noqa: B010, importing functools costs more than this
    config.Config._get_cfg_path = staticmethod(_get_cfg_path)


def install(mmcv: bool = True) -> None:
    """Install the hook, once; register at once where timm is imported already.

    Args:
        mmcv: answer for ``mmcv._ext`` as well.
    """
    modules = ("rdpnet_timm_autoload", "rdpnet_timm.autoload")  # this file goes by two names
    if any(type(finder).__module__ in modules for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _Finder(mmcv))
    if "timm" in sys.modules:
        import timm  # waits where another thread is importing it

        _register(timm)
