"""What tests share: real MNIST, the command line as a user runs it, and one small real chain."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers share two cores; libraries read it when they are loaded

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline.data import imagesets, mnist, sources
from pipeline.data.imagesets import ImageSet
from pipeline.errors import UsageError
from pipeline.machine import host
from pipeline.measure import timing
from pipeline.records import manifest
from pipeline.records.manifest import Artifact
from pipeline.release.report import measures
from pipeline.runtimes import onnxruntime
from pipeline.tensorrt import bindings as library
from pipeline.tensorrt import cuda
from tests.support import DATA, DIGITS, ROOT, SMALL, command, fake_gpu, pages, save_few, shared
from tests.support.releases import NAME


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked `gpu` where there is none, with CUDA's reason."""
    if item.get_closest_marker("gpu"):
        try:
            cuda.gpu()
        except UsageError as error:
            pytest.skip(str(error))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest test first, so that the other workers do the rest meanwhile."""
    items.sort(key=lambda item: item.name != "test_nothing_is_lost_and_nothing_silently_wrong")


@pytest.fixture(scope="session", autouse=True)
def _as_tests_need_it() -> None:
    """Image sets are looked for in the checkout's data/, in whatever folder; one core a worker; short measurements."""
    sources.ROOT = DATA
    ran, known = measures.answers, {}

    def answers(forms: list[Artifact], split: ImageSet) -> measures.Answers:
        """As `ship` runs files over a test set, 10,000 images each time: the same bytes once a worker."""
        about = (*((form.name, form.sha256) for form in forms), *split.digests.values())
        if about not in known:
            known[about] = ran(forms, split)
        return dict(known[about])

    measures.answers = answers
    host.cores = lambda: 1  # threads that wait for each other beside the other worker's take many times as long
    timing.SECONDS = (2.0, 0.2)
    timing.WARM_UP, timing.SOAK, timing.POWER = (0.02, 0.2), (0.05, 0.5), (0.02, 0.2)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    """MNIST's test set, fetched once."""
    shared(tmp_path_factory, "mnist", lambda _: mnist.find(DATA, "test") or mnist.fetch(DATA))
    return imagesets.load("mnist", "test", (1, 28, 28), DIGITS)


@pytest.fixture(scope="session")
def few(digits: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An `.npz` with the first images of MNIST, enough for everything that doesn't claim an accuracy."""
    return shared(tmp_path_factory, "few", lambda folder: save_few(folder / "few.npz")) / "few.npz"


@pytest.fixture(scope="session")
def chain(few: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the whole chain was run on the small set. Tests don't write to it: see `folder`."""

    def make(folder: Path) -> None:
        result = command("run", "--data", few, "--out", folder, *SMALL)
        assert result.returncode == 0, result.stderr[-3000:]
        (folder / "run.log").write_text(result.stderr + result.stdout)

    return shared(tmp_path_factory, "chain", make)


@pytest.fixture
def folder(chain: Path, tmp_path: Path) -> Path:
    """A copy of the chain's folder that a test may spoil."""
    return Path(shutil.copytree(chain, tmp_path / "chain"))


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files as committed, whatever a `pipeline run` has put in their place in the meantime."""

    def make(folder: Path) -> None:
        archive = subprocess.run(["git", "archive", "HEAD", "artifacts"], cwd=ROOT, capture_output=True)
        if archive.returncode == 0:
            subprocess.run(["tar", "x", "-C", folder], input=archive.stdout, check=True)
        else:  # sources without their history
            shutil.copytree(ROOT / "artifacts", folder / "artifacts")

    return shared(tmp_path_factory, "release", make) / "artifacts"


@pytest.fixture(scope="session")
def shipped(release: Path, digits: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `pipeline ship` makes of the committed files: the folder and its archive. Tests don't write to it."""
    from pipeline.release import ship

    return shared(tmp_path_factory, "shipped", lambda folder: ship.run(release, out=folder))


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`key.pem`, `pub.pem` and another pair, made as docs/release.md says. Tests don't write to it."""

    def make(folder: Path) -> None:
        for private, public in (("key.pem", "pub.pem"), ("other.pem", "other-pub.pem")):
            for line in re.findall(r"`(openssl [^`]+)`", pages.PAGES["docs/release.md"]):
                words = line.replace("key.pem", private).replace("pub.pem", public).split()
                subprocess.run(words, cwd=folder, check=True, capture_output=True)

    return shared(tmp_path_factory, "keys", make)


@pytest.fixture(scope="session")
def signed(release: Path, keys: Path, digits: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a signed release of the committed files, beside its archive. Tests don't write to it."""
    from pipeline.release import ship

    key = keys / "key.pem"
    return shared(tmp_path_factory, "signed", lambda folder: ship.run(release, out=folder, sign_key=key)) / NAME


@pytest.fixture
def device(chain: Path, monkeypatch: pytest.MonkeyPatch) -> fake_gpu.Bindings:
    """A Jetson Orin with TensorRT 10.3, as far as the session can tell; its engines answer as the float16 file does."""
    session = onnxruntime.load(manifest.read(chain / "mnist_cnn.fp16.onnx"))
    fake = fake_gpu.Cuda()
    bindings = fake_gpu.Bindings(fake, session, largest=64)
    monkeypatch.setattr(cuda, "_library", lambda: fake)
    monkeypatch.setattr(library, "load", lambda name: bindings)
    monkeypatch.setattr(library, "version", lambda name: "10.3.0")
    return bindings
