"""Puts what lies outside the package into the wheel; an editable install reads it from the source tree."""

from typing import Any, Dict

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class WheelFiles(BuildHookInterface):
    """Configs where mim and mmengine look for a package's own, and the recipes for timm's train.py."""

    def initialize(self, version: str, build_data: Dict[str, Any]) -> None:
        """Add the files; ``version`` is 'editable' or 'standard'."""
        if version != "editable":
            files = {
                "mm_configs/model-index.yml": "rdpnet_timm/.mim/model-index.yml",
                "mm_configs": "rdpnet_timm/.mim/configs",
                "recipes": "rdpnet_timm/recipes",
            }
            build_data["force_include"].update({f"{self.root}/{source}": target for source, target in files.items()})
