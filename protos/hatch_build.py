"""Compiles protos/solon/v1/*.proto into Python beside them, when the distribution is built.

Runs for wheels and editable installs. The generated files are git-ignored; running this file as a
script compiles in place.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ModuleNotFoundError:  # run as a script, outside a build
    BuildHookInterface = object  # type: ignore[assignment, misc]

PROTOS = Path(__file__).resolve().parent
_PLUGINS = ("protoc-gen-mypy", "protoc-gen-mypy_grpc")


def compile_protos() -> None:
    """Write ``*_pb2.py``, ``*_pb2.pyi`` for every file, and gRPC stubs for those with a service.

    Raises:
        RuntimeError: protoc refused a file; it has printed why.
    """
    from importlib.resources import files

    from grpc_tools import protoc

    well_known = str(files("grpc_tools") / "_proto")
    sources = sorted((PROTOS / "solon" / "v1").glob("*.proto"))
    services = [path for path in sources if "\nservice " in path.read_text("utf-8")]
    include = [f"-I{PROTOS}", f"-I{well_known}"]
    messages = [f"--python_out={PROTOS}", f"--mypy_out={PROTOS}"]
    # only_async is the option's name; the async_only of mypy-protobuf's README is ignored silently
    plugins = [f"--plugin={name}={_script(name)}" for name in _PLUGINS]
    stubs = [f"--grpc_python_out={PROTOS}", f"--mypy_grpc_out=only_async:{PROTOS}"]
    for outputs, inputs in ((messages, sources), (stubs, services)):
        code = protoc.main(["protoc", *plugins, *include, *outputs, *map(str, inputs)])
        if code != 0:
            raise RuntimeError(f"protoc exited with {code}; see its message above")


def _script(name: str) -> str:
    # protoc looks on PATH only, which lacks the environment's own scripts unless it is activated
    import shutil
    import sysconfig

    found = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    if found is None:
        raise RuntimeError(f"{name} is not installed: pip install mypy-protobuf==5.1.0")
    return found


class CompileProtos(BuildHookInterface):  # type: ignore[type-arg]
    """Hatchling's hook: compile before the files are collected."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile; hatchling then finds the results by the ``artifacts`` patterns.

        A wheel also carries the constitutions and configurations; an editable install reads them
        from the checkout, since copies would go stale.
        """
        compile_protos()
        if version != "editable":
            root = PROTOS.parent
            build_data["force_include"][str(root / "constitutions")] = "solon/constitution/library"
            build_data["force_include"][str(root / "trainer" / "configs")] = "solon/trainer/configs"


if __name__ == "__main__":
    compile_protos()
