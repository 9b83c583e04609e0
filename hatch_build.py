"""The build hook: compiles the native kernels into a wheel, or says in it why there are none.

A wheel with kernels is for one platform, one without is for all. An editable install gets them in
its source folder. How they are compiled is in src/stepwell/native/build.py; nothing fails here.
"""

from __future__ import annotations

import importlib.util
import sys
import sysconfig
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE = "stepwell/native"


class NativeKernels(BuildHookInterface):
    """Builds the kernels before a wheel is put together, and removes its copy afterwards."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Builds in place for an editable install, else in a folder of the wheel's own."""
        here = Path(self.root) / "src" / PACKAGE
        self.folder = TemporaryDirectory(prefix="stepwell-")
        native = builder(here / "build.py")
        library = (here if version == "editable" else Path(self.folder.name)) / native.LIBRARY
        report = native.build(here / "source", library)
        if report.built:
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["tag"] = f"py3-none-{platform}"
            build_data["pure_python"] = False
        else:
            self.app.display_warning(f"No native kernels: {report.reason}. PyTorch decodes.")
        if version != "editable":
            build_data["force_include"].update(
                {str(file): f"{PACKAGE}/{file.name}" for file in Path(self.folder.name).iterdir()}
            )

    def finalize(self, *_: Any) -> None:
        """Removes what was compiled for this wheel."""
        self.folder.cleanup()


def builder(path: Path) -> ModuleType:
    """The module at `path`, loaded without the package around it, which needs other packages."""
    spec = importlib.util.spec_from_file_location("stepwell_native_build", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
