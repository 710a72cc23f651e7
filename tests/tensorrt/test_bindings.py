"""Code for libraries that aren't here, held against what they say they have: bindings, type stubs, Python 3.10."""

from __future__ import annotations

import ast
import operator
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from pipeline.tensorrt import cuda
from tests.support import ROOT

STUBS = "tensorrt-stubs==10.13.0.35.1"  # of the real TensorRT, alone: the bindings need NVIDIA's own index
DEVICE_SIDE = ["builder", "bindings", "precision"]
FILES = [*(ROOT / f"pipeline/tensorrt/{name}.py" for name in DEVICE_SIDE), ROOT / "pipeline/runtimes/tensorrt.py"]


@pytest.fixture(scope="session")
def stubs(tmp_path_factory) -> Path:
    """The stubs' folder, with what isn't Python in them mended: a parameter called `in`, a member called `bool`."""
    folder = tmp_path_factory.mktemp("stubs")
    line = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", folder, STUBS]
    subprocess.run(line, check=True, timeout=300)
    zipfile.ZipFile(next(folder.glob("*.whl"))).extractall(folder)
    path = folder / "tensorrt_bindings/tensorrt.pyi"
    text = re.sub(r"\bin: ", "in_: ", path.read_text())
    text = text.replace("power: Weights = None, channel_axis: int)", "power: Weights = None, channel_axis: int = ...)")
    path.write_text(re.sub(r"(?m)^bool: DataType.*$", "", text))
    return folder


def types(stubs: Path, *files: Path) -> list[str]:
    """What mypy says of these files, as for Python 3.10."""
    line = [sys.executable, "-m", "mypy", "--python-version", "3.10", "--ignore-missing-imports"]
    line += ["--check-untyped-defs", "--follow-imports", "silent", "--no-error-summary"]
    line += ["--cache-dir", str(stubs / "mypy"), *map(str, files)]
    done = subprocess.run(line, cwd=ROOT, env=os.environ | {"MYPYPATH": str(stubs)}, capture_output=True, text=True)
    assert not done.stderr, done.stderr
    return [line for line in done.stdout.splitlines() if ".pyi:" not in line and ": note:" not in line]


def test_tensorrt_has_what_its_objects_are_asked_for(stubs):
    """Shapes may be tuples where the stubs say Dims: the bindings convert."""
    assert [found for found in types(stubs, *FILES) if '"Dims"' not in found] == []


def test_a_name_that_tensorrt_has_not_would_be_found(stubs, tmp_path):
    text = (ROOT / "pipeline/tensorrt/builder.py").read_text()
    text = text.replace("config.add_optimization_profile", "config.add_profile")
    text = text.replace("parser.num_errors", "parser.errors")
    wrong = tmp_path / "builder.py"
    wrong.write_text(text)
    found = " ".join(types(stubs, wrong))
    assert '"IBuilderConfig" has no attribute "add_profile"' in found and '"OnnxParser" has no attribute' in found


def names_of(module: str) -> set[str]:
    """The members that our code asks a module for that it has as a variable."""
    used = set()
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node).startswith(f"{module}."):
                used.add(ast.unparse(node).removeprefix(f"{module}."))
    return {name for name in used if not name.startswith("__")}


def test_the_module_has_every_member_in_tensorrt_rtx():
    found = pytest.importorskip("tensorrt_rtx")
    used = names_of("bindings")
    assert len(used) > 20
    for name in used:
        operator.attrgetter(name)(found)


def test_the_module_has_every_member_in_tensorrts_stubs(stubs):
    """All but the GPUs to build for: `tensorrt` builds for its own alone."""
    scope = ast.parse((stubs / "tensorrt_bindings/tensorrt.pyi").read_text())
    absent = [name for name in names_of("bindings") if not _in_stub(scope, name.split("."))]
    assert {name.partition(".")[0] for name in absent} == {"ComputeCapability"}


def _in_stub(scope, names: list[str]) -> bool:
    for node in scope.body:
        targets = getattr(node, "targets", [getattr(node, "target", node)])
        if names[0] in [getattr(target, "name", getattr(target, "id", None)) for target in targets]:
            return len(names) == 1 or _in_stub(node, names[1:])
    return False


def test_objects_have_the_names_that_are_used_in_tensorrt_rtx():
    """By what they are called in the code; that a variable is of the type its name says, mypy holds above."""
    bindings = pytest.importorskip("tensorrt_rtx")
    objects = {
        "builder": bindings.Builder,
        "network": bindings.INetworkDefinition,
        "parser": bindings.OnnxParser,
        "config": bindings.IBuilderConfig,
        "profile": bindings.IOptimizationProfile,
        "layer": bindings.ILayer,
        "error": bindings.ParserError,
        "runtime": bindings.Runtime,
        "engine": bindings.ICudaEngine,
        "context": bindings.IExecutionContext,
        "self._engine": bindings.ICudaEngine,
    }
    used = set()
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and (owner := ast.unparse(node.value)) in objects:
                assert hasattr(objects[owner], node.attr), f"{file.name}: {owner}.{node.attr}"
                used.add(f"{owner}.{node.attr}")
    assert {"config.set_memory_pool_limit", "context.execute_async_v3", "network.get_layer"} <= used


def test_every_name_of_cuda_that_is_used_is_there():
    """Functions, constants, and the members of enumerations."""
    from cuda.bindings import driver

    text = Path(cuda.__file__).read_text()
    used = set(re.findall(r"\b(cu[A-Z][a-zA-Z]+)\b", text))
    assert len(used) > 20 and [name for name in used if not hasattr(driver, name)] == []
    members = set(re.findall(r"\b(CU(?:DA)?_[A-Z_]+)\b", text))
    enumerations = ("CUresult", "CUstream_flags", "CUevent_flags", "CUstreamCaptureMode", "CUdevice_attribute")
    known = {name for each in enumerations for name in getattr(driver, each).__members__} | vars(driver).keys()
    assert len(members) == 9 and members <= known


def test_jetpack_6s_standard_library_has_what_is_used(stubs):
    """Python 3.10's; that it can read every file, ruff checks, whose target it is."""
    imports = [path for path in (ROOT / "pipeline").rglob("*.py") if "experiments" not in path.parts]
    missing = ("has no attribute", "Cannot find implementation", "is not defined")
    told = [found for found in types(stubs, *imports) if "Module" in found and any(each in found for each in missing)]
    assert told == []
