"""Code for libraries that aren't here, held against what they say they have: bindings, type stubs, Python 3.10."""

from __future__ import annotations

import ast
import operator
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

from pipeline.tensorrt import cuda
from tests.support import ROOT

STUBS = "tensorrt-stubs==10.13.0.35.1"  # of the real TensorRT, alone: the bindings need NVIDIA's own index
# The bindings themselves, of JetPack 6.2, 7.0, 7.2 and the newest: 1.3 MB each, but no library to import them with.
BINDINGS = [f"tensorrt-cu12-bindings=={version}" for version in ("10.3.0", "10.13.3.9", "10.16.1.11", "11.4.0.106")]
RTX_ALONE = {"ComputeCapability"}
FILES = [path for path in sorted((ROOT / "pipeline/tensorrt").glob("*.py")) if path.name != "cuda.py"]
FILES.append(ROOT / "pipeline/runtimes/tensorrt.py")


def wheel(requirement: str, cache: pytest.Cache) -> zipfile.ZipFile:
    """A wheel, downloaded the first time. Skips the test, with pip's reason, where it can't be."""
    folder = cache.mkdir("wheels")
    path = folder / f"{requirement}.whl"
    if not path.is_file():
        with tempfile.TemporaryDirectory(dir=folder) as part:  # another worker may be at it, too
            line = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet"]
            line += ["--python-version", "3.12", "--platform", "manylinux_2_28_x86_64"]
            line += ["--platform", "manylinux_2_17_x86_64", "--dest", part, requirement]
            done = subprocess.run(line, capture_output=True, text=True, timeout=300)
            if done.returncode:
                pytest.skip(f"{requirement} can't be downloaded: {done.stderr.strip().splitlines()[-1]}")
            next(Path(part).glob("*.whl")).replace(path)
    return zipfile.ZipFile(path)


@pytest.fixture(scope="session")
def stubs(tmp_path_factory, pytestconfig) -> Path:
    """The stubs' folder, with what isn't Python in them mended: a parameter called `in`, a member called `bool`."""
    folder = tmp_path_factory.mktemp("stubs")
    wheel(STUBS, pytestconfig.cache).extractall(folder)
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


class Asked(ast.NodeVisitor):
    """The names that code asks TensorRT's objects for: of `bindings`, of what is annotated `trt.…`, and what they give.

    Where a function says that it returns such an object, so does what it is assigned to.
    """

    def __init__(self, *texts: str) -> None:
        self.names: set[str] = set()
        trees = [ast.parse(text) for text in texts]
        functions = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        self.givers = {node.name for node in functions if node.returns and "trt." in ast.unparse(node.returns)}
        own = {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        for tree in trees:
            self.theirs = {"bindings"}
            for node in ast.walk(tree):  # methods that TensorRT calls, not we
                if isinstance(node, ast.ClassDef) and any(map(self.is_theirs, node.bases)):
                    self.names |= {each.name for each in node.body if isinstance(each, ast.FunctionDef)} - own
            self.visit(tree)
        self.names = {name for name in self.names if not hasattr(str, name) and not hasattr(dict, name)}

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """A function's variables are its own; a class's attributes are the file's."""
        outside = {*self.theirs}
        for each in ast.walk(node):
            if isinstance(each, ast.arg) and each.annotation and "trt." in ast.unparse(each.annotation):
                self.theirs.add(each.arg)
        for each in ast.walk(node):
            for target, value in _assigned(each):
                if self.is_theirs(value):
                    self.theirs |= {ast.unparse(part) for part in getattr(target, "elts", [target])}
        self.generic_visit(node)
        self.theirs = outside | {name for name in self.theirs if name.startswith("self.")}

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if self.is_theirs(node.value) and not node.attr.startswith("__"):
            self.names.add(node.attr)
        self.generic_visit(node)

    def is_theirs(self, node: ast.AST) -> bool:
        if isinstance(node, ast.Attribute) and node.attr.startswith("__"):
            return False  # such as a version, which is text
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in self.givers:
            return True
        inner = getattr(node, "func", getattr(node, "value", getattr(node, "elt", None)))
        return ast.unparse(node) in self.theirs or (isinstance(inner, ast.AST) and self.is_theirs(inner))


def _assigned(node: ast.AST) -> list[tuple[ast.AST, ast.AST]]:
    if isinstance(node, ast.For | ast.comprehension):
        return [(node.target, node.iter)]
    if isinstance(node, ast.AnnAssign) and node.value:
        return [(node.target, node.value)]
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple):
        return list(zip(node.targets[0].elts, node.value.elts, strict=True))
    return [(target, node.value) for target in node.targets] if isinstance(node, ast.Assign) else []


def absent(names: set[str], requirement: str, cache: pytest.Cache) -> set[str]:
    """Those names that aren't in a wheel's extension module. A linker stores a name as the end of a longer one, too."""
    found = wheel(requirement, cache)
    content = b"".join(found.read(name) for name in found.namelist() if name.endswith(".so"))
    return {name for name in names if name.encode() + b"\0" not in content}


@pytest.mark.parametrize("requirement", BINDINGS)
def test_the_real_bindings_have_every_name_that_is_used(requirement, pytestconfig):
    used = Asked(*(file.read_text() for file in FILES)).names
    assert {"execute_async_v3", "phase_start"} <= used
    assert len(used) > 60 and absent(used, requirement, pytestconfig.cache) == RTX_ALONE


@pytest.mark.parametrize("requirement", BINDINGS)
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("parser.num_errors", "parser.how_many_errors"),
        ("self._engine.create_execution_context", "self._engine.create_contexts"),
        ("bindings.BuilderFlag.GPU_FALLBACK", "bindings.BuilderFlag.FALL_BACK"),
        ("def phase_start", "def phase_begins"),
    ],
)
def test_a_name_that_the_real_bindings_have_not_is_found(requirement, right, wrong, pytestconfig):
    text = "".join(file.read_text().replace("from __future__ import annotations", "") for file in FILES)
    assert right in text
    used = Asked(text.replace(right, wrong)).names
    name = re.split(r"\W", wrong)[-1]
    assert absent(used, requirement, pytestconfig.cache) == {*RTX_ALONE, name}


def test_what_tensorrt_11_has_no_more_is_found(pytestconfig):
    code = "def size(engine: trt.ICudaEngine): return engine.device_memory_size"
    used, (oldest, *_, newest) = Asked(code).names, BINDINGS
    assert absent(used, oldest, pytestconfig.cache) == set()
    assert absent(used, newest, pytestconfig.cache) == {"device_memory_size"}


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


@pytest.mark.exhaustive
def test_jetpack_6s_standard_library_has_what_is_used(stubs):
    """Python 3.10's; that it can read every file, ruff checks, whose target it is."""
    imports = [path for path in (ROOT / "pipeline").rglob("*.py") if "experiments" not in path.parts]
    missing = ("has no attribute", "Cannot find implementation", "is not defined")
    told = [found for found in types(stubs, *imports) if "Module" in found and any(each in found for each in missing)]
    assert told == []
