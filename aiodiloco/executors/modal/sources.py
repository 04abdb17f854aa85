"""Which of the user's modules a container needs, and under which name it finds the entrypoint there."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

from aiodiloco.errors import EntrypointError

if TYPE_CHECKING:
    from collections.abc import Iterable

    import modal

__all__ = ["Source", "add_sources", "source_of"]

_IMPORT_ROOT = "/root"  # on the import path of every Modal container


@dataclasses.dataclass(frozen=True)
class Source:
    """Where an entrypoint comes from.

    Attributes:
        entrypoint: Its `"module:function"` name in the container.
        package: The top-level module or package to ship; None if the image has it.
        script: The file to ship instead, where the driver's own script is no importable module.
    """

    entrypoint: str
    package: str | None = None
    script: str | None = None

    def files(self) -> Source:
        """Return what is to be shipped, whatever the function is called."""
        return dataclasses.replace(self, entrypoint="")


def source_of(entrypoint: str) -> Source:
    """Return what to ship for `entrypoint`, which can be imported here.

    What is installed in site-packages is not shipped: an image should install it too.
    """
    module, _, qualname = entrypoint.partition(":")
    if module == "__main__":
        main = sys.modules["__main__"]
        if (spec := getattr(main, "__spec__", None)) is None:
            return _source_of_script(Path(str(main.__file__)).resolve(), qualname)
        module = spec.name
    top = module.partition(".")[0]
    name = f"{module}:{qualname}"
    return Source(name) if top == "aiodiloco" or _is_installed(top) else Source(name, package=top)


def _source_of_script(path: Path, qualname: str) -> Source:
    if not path.stem.isidentifier():
        raise EntrypointError(
            f"entrypoint __main__:{qualname}: containers import {path.name} as a module, and {path.stem!r} cannot be "
            "the name of one; rename the script, or move the function to a module"
        )
    return Source(f"{path.stem}:{qualname}", script=str(path))


def _is_installed(top: str) -> bool:
    if top in sys.stdlib_module_names:
        return True
    spec = importlib.util.find_spec(top)
    if spec is None:
        return False
    places = [spec.origin] if spec.origin else list(spec.submodule_search_locations or ())
    roots = [Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")]
    return any(root in Path(place).resolve().parents for place in places for root in roots)


def add_sources(image: modal.Image, sources: Iterable[Source]) -> modal.Image:
    """Return `image` with the files of `sources`, which are uploaded and not built in."""
    packages = sorted({source.package for source in sources if source.package is not None})
    scripts = sorted({source.script for source in sources if source.script is not None})
    if packages:
        image = image.add_local_python_source(*packages)
    for script in scripts:
        image = image.add_local_file(script, f"{_IMPORT_ROOT}/{Path(script).name}")
    return image
