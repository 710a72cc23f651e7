"""What a board has, and what is put on it: packed files, and a virtual environment with this project in it."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from pipeline.device import wheels
from pipeline.device.ssh import Board
from pipeline.errors import CheckFailed, UsageError, reason
from pipeline.records import manifest
from pipeline.records.facts import Name, Words
from pipeline.release import archives
from pipeline.tensorrt import bindings as library

SPACE = 1 << 30  # bytes that must be free for a virtual environment
PYTHON, CUDA = (3, 10), 12
CHECK = """
import ctypes, json, os, platform, shutil, subprocess, sys
def attempt(what):
    try:
        return what()
    except Exception:
        return None
def cuda():
    version = ctypes.c_int()
    ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    return version.value // 1000
jetpack = ["dpkg-query", "-W", "-f", "${Version}", "nvidia-jetpack"]
about = {
    "python": sys.version_info[:3],
    "architecture": platform.machine(),
    "glibc": platform.libc_ver()[1],
    "free": shutil.disk_usage(".").free,
    "present": [name for name in os.listdir(".") if name[:4] != "venv" or os.path.exists(name + "/ready")],
    "venv": bool(attempt(lambda: [__import__("ensurepip"), __import__("venv")])),
    "jetpack": attempt(lambda: subprocess.check_output(jetpack, stderr=subprocess.DEVNULL).decode().strip()),
    "tensorrt": attempt(lambda: str(__import__(sys.argv[1]).__version__)),
    "cuda": attempt(cuda),
}
print(json.dumps(about))
"""
UNPACK = 'rm -rf "$1" "$1.part" && mkdir "$1.part" && tar -xzf - --no-same-owner -C "$1.part" && mv "$1.part" "$1"'
INSTALL = """venv=$1 wheel=$2 extras=$3; shift 3
pip() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@" >&2; }
rm -rf "$venv"
python3 -m venv --system-site-packages "$venv" >&2 && pip "$@" "$wheel[$extras]" &&
    pip --no-deps --no-index --force-reinstall "$wheel" && touch "$venv/ready" && rm -rf wheels-* && exit
code=$?; rm -rf "$venv"; exit $code
"""


class About(msgspec.Struct, frozen=True):
    """What a board has, before anything is copied to it; `tensorrt` is the version of the module asked for."""

    python: tuple[int, int, int]
    architecture: Name
    glibc: Annotated[str, Meta(pattern=r"^\d+\.\d+\Z")]
    free: int
    present: list[str]
    venv: bool
    jetpack: Words | None
    tensorrt: Annotated[str, Meta(pattern=r"^\d+\.[\w.+-]*\Z")] | None
    cuda: int | None


@dataclass(frozen=True)
class Parcel:
    """Files to put on a board, packed; the name of their folder there, and the path of what was packed."""

    name: str
    path: str
    content: bytes

    @classmethod
    def of(cls, kind: str, path: Path) -> Parcel:
        """Pack a folder; or a file, with the records beside it."""
        path = path.resolve()
        with tempfile.TemporaryDirectory() as scratch:
            folder, within = path, ""
            if path.is_file():
                folder, within = Path(scratch) / kind, f"/{path.name}"
                folder.mkdir()
                for each in {path, path.with_name(manifest.FILE)}:
                    if each.is_file():
                        shutil.copy(each, folder)
            content = archives.pack(folder)
        name = f"{kind}-{short(content)}"
        return cls(name, f"{name}/{folder.name}{within}", content)


def short(content: bytes) -> str:
    """The name of a content: the beginning of its sha256."""
    return hashlib.sha256(content).hexdigest()[:16]


def ask(board: Board, module: str) -> About:
    """Ask a board what it has."""
    answer = board.call("looking for Python", 'exec python3 -c "$@"', CHECK, module)
    try:
        about = msgspec.json.decode(answer.splitlines()[-1], type=About)
    except (ValueError, IndexError, RecursionError) as error:
        raise CheckFailed(f"{board.host}: doesn't tell what it is: {reason(error)}") from error
    parts = [f"JetPack {about.jetpack or 'none'}", f"TensorRT {about.tensorrt or 'none'}"]
    parts += [f"Python {'.'.join(map(str, about.python))}", f"{about.free / 1e9:.1f} GB free"]
    board.say(", ".join(parts))
    return about


def expect_fit(board: Board, about: About, runtime: str, venv: str, sent: list[Parcel]) -> None:
    """UsageError if a board lacks what deploying on it needs."""
    jetpack = "as in JetPack 6.1 and later"
    if about.python < PYTHON:
        raise UsageError(f"{board.host}: Python {about.python[0]}.{about.python[1]}: expected 3.10 or later, {jetpack}")
    if not about.venv:
        raise UsageError(f"{board.host}: can't make a virtual environment: sudo apt install python3-venv, there")
    if runtime != "none":
        lacks = None if about.tensorrt else "no TensorRT that its python3 can import"
        if about.tensorrt and runtime != "tensorrt-rtx" and int(about.tensorrt.split(".")[0]) < library.OLDEST:
            lacks = f"TensorRT {about.tensorrt}, without strongly typed networks"
        if not lacks and (about.cuda or 0) < CUDA:
            lacks = f"CUDA {about.cuda}, too old for cuda-bindings" if about.cuda else "no CUDA driver (libcuda.so.1)"
        if lacks:
            expected = f"TensorRT {library.OLDEST} and CUDA {CUDA} or later, {jetpack}: sudo apt install nvidia-jetpack"
            if runtime == "tensorrt-rtx":
                expected = f"tensorrt-rtx (x86-64) and CUDA {CUDA} or later"
            raise UsageError(
                f"{board.host}: {lacks}: expected {expected}, there; --runtime none deploys without engines"
            )
    needed = 4 * sum(len(each.content) for each in sent) + (0 if venv in about.present else SPACE)
    if about.free < needed:
        raise UsageError(f"{board.host}: disk full: expected {needed:,} bytes free, received {about.free:,}")


def put(board: Board, parcel: Parcel) -> None:
    """Copy a parcel to a board, where it appears as a whole or not at all."""
    board.say(f"copying {parcel.name}, {len(parcel.content):,} bytes")
    board.call(f"copying {parcel.name}", UNPACK, parcel.name, given=parcel.content)


def install(board: Board, venv: str, extras: str, about: About, offline: bool) -> None:
    """Make the board's virtual environment with this project in it, from a wheel that is built here."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "wheels"
        folder.mkdir()
        wheel = wheels.build(folder)
        if offline:
            python = "{}.{}".format(*about.python)
            wheels.gather(wheel, extras, python=python, architecture=about.architecture, glibc=about.glibc)
        parcel = Parcel.of("wheels", folder)
    board.say(f"installing this project into {venv}: some minutes, the first time")
    put(board, parcel)
    index = ["--no-index", "--find-links", parcel.path] if offline else []
    code, _, errors = board.follow(INSTALL, venv, f"./{parcel.path}/{wheel.name}", extras, *index)
    if code:
        raise board.failure("installing", code, errors)
