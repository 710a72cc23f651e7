"""A board behind an SSH server of the test's own, on the loopback: real OpenSSH, a home and a key made for it."""

from __future__ import annotations

import getpass
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
NO_TORCH = """
import sys
class NoTorch:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("torch", "torchvision"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, NoTorch())
"""


class Server:
    """An SSH server whose sessions have a home of their own; `config` lets `ssh -F` reach it as `board`.

    With `borrow`, they see the packages of this environment but torch, so that pip there has nothing to fetch. With
    `inside`, the beginning of a command line, they run in another system.
    """

    def __init__(self, folder: Path, *, borrow: bool, inside: Sequence[object] = ()) -> None:
        if not SSHD:
            pytest.skip("needs an SSH server: apt install openssh-server")
        self.folder, self.home, self.bin, self.config = folder, folder / "home", folder / "bin", folder / "ssh_config"
        self.home.mkdir(parents=True)
        self.bin.mkdir()
        (self.bin / "python3").symlink_to(getattr(sys, "_base_executable", sys.executable))
        (folder / "path").mkdir()
        (folder / "path/sitecustomize.py").write_text(NO_TORCH)
        for name in ("host", "other", "key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.trust("host")
        environment = {"HOME": self.home, "PATH": f"{self.bin}:/usr/sbin:/usr/bin:/sbin:/bin"}
        if borrow:
            environment["PYTHONPATH"] = f"{folder / 'path'}:{sysconfig.get_path('purelib')}"
            environment |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        else:
            environment["PIP_NO_INDEX"] = "1"
        if inside:
            self.program("inside", f'exec {shlex.join(map(str, inside))} sh -c "$SSH_ORIGINAL_COMMAND"')
        self._start(environment, f"ForceCommand {self.bin}/inside" if inside else "")
        self.client()

    def _start(self, environment: dict[str, object], more: str) -> None:
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # where the server confines itself to
        settings = self.folder / "sshd_config"
        settings.write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {self.folder}/host\nPidFile none\nStrictModes no\n"
            f"AuthorizedKeysFile {self.folder}/key.pub\nPasswordAuthentication no\nUsePAM no\nPermitRootLogin yes\n"
            f"SetEnv {' '.join(f'{name}={value}' for name, value in environment.items())}\n{more}\n"
        )
        with (self.folder / "sshd.log").open("w") as log:
            self.process = subprocess.Popen([SSHD, "-D", "-e", "-f", settings], stderr=log, stdin=subprocess.DEVNULL)
        for _ in range(100):
            time.sleep(0.05)
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
        pytest.fail((self.folder / "sshd.log").read_text())

    def trust(self, key: str | None) -> None:
        """Make this the host key that is known, or none."""
        known = f"[127.0.0.1]:{self.port} {(self.folder / f'{key}.pub').read_text()}" if key else ""
        (self.folder / "known_hosts").write_text(known)

    def client(self, **settings: object) -> None:
        """Write the client's configuration; `board` and `second` are this server."""
        values = {"HostName": "127.0.0.1", "Port": self.port, "User": getpass.getuser(), "IdentitiesOnly": "yes"}
        values |= {"IdentityFile": self.folder / "key", "UserKnownHostsFile": self.folder / "known_hosts"}
        values |= {"GlobalKnownHostsFile": "/dev/null", "StrictHostKeyChecking": "yes", **settings}
        self.config.write_text("Host *\n" + "".join(f"  {name} {value}\n" for name, value in values.items()))

    def program(self, name: str, script: str) -> None:
        """Put a program first on the board's path."""
        (self.bin / name).unlink(missing_ok=True)
        (self.bin / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.bin / name).chmod(0o755)

    def cut(self) -> None:
        """Kill every connection, as a pulled cable does; the server goes on."""
        for each in _children(self.process.pid):
            os.kill(each, signal.SIGKILL)

    def stop(self) -> None:
        self.cut()
        self.process.terminate()
        self.process.wait()


def _children(pid: int) -> list[int]:
    """The processes that a process started, by /proc."""
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
