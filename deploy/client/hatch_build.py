"""Puts `service.client` and `service.contract` of the checkout into the package `notellm_client`."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Sources(BuildHookInterface[Any]):
    """Adds the sources of the checkout; an unpacked sdist already holds them."""

    def initialize(self, _version: str, build_data: dict[str, Any]) -> None:
        """Called before a wheel or an sdist is built."""
        service = Path(self.root).parents[1] / "service"
        if not (Path(self.root) / "notellm_client" / "client").exists():
            for name in ("client", "contract"):
                build_data["force_include"][str(service / name)] = f"notellm_client/{name}"
