"""The device side on an emulated aarch64: installed and run there, its answers held against this machine's.

`python -m tests.arm64`, as root, on an x86-64 Debian or Ubuntu with qemu-user-static and debootstrap. A Debian is
unpacked into --folder without its own installer, which takes an hour under emulation; pip runs inside it, on wheels
fetched here. Three minutes, and half of that the next time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from pipeline import console
from pipeline.data import imagesets
from pipeline.device import wheels
from pipeline.errors import UsageError

ROOT = Path(__file__).parents[1]
FILES = ("mnist_cnn.onnx", "mnist_cnn.fp16.onnx")
FOLDER = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edge-pipeline/arm64"
READY = "ready-venv"  # python3-venv is in it, too
BINFMT, HANDLER = Path("/proc/sys/fs/binfmt_misc"), Path("/usr/lib/binfmt.d/qemu-aarch64.conf")
ANSWERS = """
import sys, numpy
from pathlib import Path
from pipeline.records import manifest
from pipeline.runtimes import onnxruntime
images = numpy.load(sys.argv[1])["images"]
found = {}
for name in sys.argv[4:]:
    with onnxruntime.load(manifest.read(Path(sys.argv[2]) / name), threads=1) as session:
        found[name] = numpy.concatenate([session(images[start:start + 50]) for start in range(0, len(images), 50)])
        found[name + ":"] = session.arithmetic
numpy.savez(sys.argv[3], **found)
"""


def main() -> int:
    arguments = _arguments()
    root, release = arguments.folder / "root", arguments.release.resolve()
    try:
        prepare(arguments.folder)
        test = imagesets.load(arguments.data, "test", (1, 28, 28), tuple("0123456789"))
        images = {"images": test.images[: arguments.images], "labels": test.labels[: arguments.images]}
        _install(root)
        found = _run_inside(root, release, images) | _compare(root, release)
    except UsageError as error:
        print("error:", error, file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        print(f"error: exit code {error.returncode} of: {' '.join(map(str, error.cmd))[:300]}", file=sys.stderr)
        return 1
    _show(found, arguments.json)
    return int(any(row["same"] != row["images"] for row in found["agreement"].values()))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"where the Debian goes, 700 MB; {FOLDER}")
    parser.add_argument("--release", type=Path, default=ROOT / "artifacts", help="folder with the two .onnx files")
    parser.add_argument("--data", default="mnist", help="image set with the images to compare; mnist")
    parser.add_argument("--images", type=int, default=1000, help="how many test images; 1000")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser.parse_args()


def prepare(folder: Path) -> None:
    """Make the emulated system in a folder, unless it is there. UsageError if that can't be."""
    _assert_usable()
    _emulate()
    if not (folder / READY).exists():
        _unpack(folder, folder / "root")


def _assert_usable() -> None:
    absent = [name for name in ("debootstrap", "qemu-aarch64-static", "dpkg-deb", "unshare") if not shutil.which(name)]
    if absent:
        raise UsageError(f"needs {', '.join(absent)}: sudo apt install qemu-user-static debootstrap")
    if os.geteuid():
        raise UsageError("needs root, to mount and chroot: run it with sudo")


def _emulate() -> None:
    """Have the kernel start aarch64 programs in qemu. Registered with the flag F, it works inside a chroot, too."""
    if not (BINFMT / "register").exists():
        _call("mount", "-t", "binfmt_misc", "binfmt_misc", BINFMT)
    if not (BINFMT / "qemu-aarch64").exists():
        (BINFMT / "register").write_text(HANDLER.read_text())


def _unpack(folder: Path, root: Path) -> None:
    """debootstrap fetches and checks the packages; their files are all that is needed of them."""
    asked = ("apt-get", "indextargets", "--format", "$(SITE) $(RELEASE)", "Created-By: Packages")
    targets = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()
    if not targets:
        raise UsageError("apt has no package lists, from which Debian's mirror and release are taken: sudo apt update")
    site, release = targets[:2]
    shutil.rmtree(root, ignore_errors=True)
    console.say(f"arm64 {release}: fetching the packages")
    more = ["--foreign", "--arch=arm64", "--variant=minbase", "--include=python3,python3-pip,python3-venv"]
    _call("debootstrap", *more, release, root, site)
    for package in sorted((root / "var/cache/apt/archives").glob("*.deb")):
        files = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], capture_output=True, check=True).stdout
        subprocess.run(["tar", "-x", "-C", root, "--keep-directory-symlink"], input=files, check=True)
    if (root / "proc").is_symlink():  # debootstrap's, to the machine's own
        (root / "proc").unlink()
    for name in ("proc", "dev"):
        (root / name).mkdir(exist_ok=True)
    (folder / READY).touch()


def _install(root: Path) -> None:
    """`pip install` of the device's extra, inside; the wheels are fetched for aarch64 here, where the network is."""
    console.say("the device's extra: fetching the wheels, pip install inside")
    folder = root / "wheels"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    wheel = wheels.build(folder)
    about = "import sys, platform; print('%d.%d' % sys.version_info[:2], platform.libc_ver()[1])"
    python, glibc = _inside(root, "python3", "-c", about).split()
    wheels.gather(wheel, "jetson", python=python, architecture="aarch64", glibc=glibc)
    options = [
        "--quiet",
        "--break-system-packages",
        "--root-user-action=ignore",
        "--no-index",
        "--find-links",
        "/wheels",
    ]
    _inside(root, "python3", "-m", "pip", "install", "--force-reinstall", *options, f"/wheels/{wheel.name}[jetson]")


def _run_inside(root: Path, release: Path, images: dict[str, np.ndarray]) -> dict:
    shutil.rmtree(root / "trial", ignore_errors=True)
    shutil.copytree(release, root / "trial/release")
    np.savez(root / "trial/few.npz", **images)
    told = {}
    for name, line in {
        "doctor": ["doctor"],
        "verify": ["verify", f"/trial/release/{FILES[0]}", "--data", "/trial/few.npz", "--gate", "0.95"],
        "bench": ["bench", f"/trial/release/{FILES[0]}", "--quick", "--batch", "1"],
    }.items():
        console.say(f"inside: pipeline {' '.join(line)}")
        told[name] = json.loads(_inside(root, "pipeline", *line, "--json"))["facts"]
    return {
        "architecture": told["doctor"]["machine"]["architecture"],
        "python": told["doctor"]["machine"]["python"],
        "onnxruntime": told["doctor"]["onnxruntime"]["version"],
        "accuracy": told["verify"]["rows"][0]["accuracy"],
        "p50_microseconds_emulated": told["bench"]["rows"][0]["microseconds"]["p50"],
    }


def _compare(root: Path, release: Path) -> dict:
    console.say("the same images through both files, inside and here")
    _inside(root, "python3", "-c", ANSWERS, "/trial/few.npz", "/trial/release", "/trial/there.npz", *FILES)
    few, here = root / "trial/few.npz", root / "trial/here.npz"
    subprocess.run([sys.executable, "-c", ANSWERS, few, release, here, *FILES], check=True, cwd=ROOT)
    with np.load(root / "trial/there.npz") as there, np.load(here) as native:
        return {"agreement": {name: _agreement(there, native, name) for name in FILES}}


def _agreement(there: dict, here: dict, name: str) -> dict:
    return {
        "images": len(here[name]),
        "same": int((there[name].argmax(1) == here[name].argmax(1)).sum()),
        "largest_difference": float(np.abs(there[name] - here[name]).max()),
        "arithmetic": str(there[f"{name}:"]),
    }


def _inside(root: Path, *line: str) -> str:
    """Run a command in the emulated system and return what it writes."""
    return subprocess.run([*inside(root), *line], check=True, stdout=subprocess.PIPE, text=True).stdout


def inside(root: Path) -> list[object]:
    """The beginning of a command line that runs in the emulated system, with mounts that end with it.

    Without /sys, which tells of this machine's processor: ONNX Runtime crashes on it there, and but warns where it is
    missing.
    """
    mounts = 'for each in proc dev; do mount --rbind "/$each" "$0/$each"; done && exec chroot "$0" "$@"'
    clean = ["env", "-i", "PATH=/usr/local/bin:/usr/bin:/bin", "HOME=/root", "LANG=C.UTF-8"]
    return ["unshare", "--mount", "sh", "-c", mounts, root, *clean]


def _call(*line: object) -> None:
    subprocess.run(list(map(str, line)), check=True, stdout=subprocess.DEVNULL)


def _show(found: dict, as_json: bool) -> None:
    if as_json:
        print(json.dumps(found, indent=1))
        return
    print(f"{found['architecture']}, Python {found['python']}, ONNX Runtime {found['onnxruntime']}, without torch")
    print(f"pipeline verify: {found['accuracy']:.2%}; pipeline bench: ran (an emulator's times mean nothing)")
    for name, row in found["agreement"].items():
        same = f"{row['same']} of {row['images']} predictions as on this machine"
        print(f"{name} ({row['arithmetic']}): {same}, logits differ by {row['largest_difference']:.1e} at most")


if __name__ == "__main__":
    sys.exit(main())
