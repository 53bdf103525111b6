"""Places the plug-in folders inside a wheel, where the installed package looks for them. An editable install reads the
checkout itself and gets no copies."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class PluginFolders(BuildHookInterface):  # type: ignore[type-arg]
    """Adds `methods/`, `tasks/`, `reports/` and `docker/` under cdbench/plugins/."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "standard":
            for folder in ("methods", "tasks", "reports", "docker"):
                build_data["force_include"][f"{self.root}/{folder}"] = f"cdbench/plugins/{folder}"
