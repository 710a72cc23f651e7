"""A board behind the system's OpenSSH: one connection, and scripts that run there in a folder of their own.

Keys, agents, jump hosts and known hosts are the user's own, and no password is asked for.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pipeline import console
from pipeline.errors import CheckFailed, PipelineError, UsageError, last_line
from pipeline.records.facts import UNPRINTED, Name

ROOT = ".cache/edge-pipeline/deploy"  # of the board's home: all that is put there
OPTIONS = ("BatchMode=yes", "ConnectTimeout=15", "ServerAliveInterval=15", "LogLevel=ERROR", "RequestTTY=no")
# The job ends with the connection: left alone, it would disturb what the next one measures.
WATCHED = """exec 3<&0
setsid sh -c "$job" sh "$@" </dev/null 3<&- & pid=$!
(cat <&3; kill -TERM "-$pid") >/dev/null 2>&1 & watch=$!
exec 3<&-
wait "$pid"; code=$?
kill "$watch" 2>/dev/null
exit "$code"
"""
BROKEN = 255  # ssh's exit code for its own errors


@dataclass(frozen=True)
class Board:
    """A connected board. Scripts run there in ROOT, with their arguments in `$1` and so on."""

    host: str
    ssh: tuple[str, ...]

    def say(self, text: str) -> None:
        console.say(f"{self.host}: {text}")

    def call(self, doing: str, script: str, *words: str, given: bytes = b"") -> bytes:
        """Run a script, give it bytes to read, and return what it writes. PipelineError, in one line, if it fails."""
        done = subprocess.run(self._line(script, words), input=given, capture_output=True)
        if done.returncode:
            raise self.failure(doing, done.returncode, done.stderr.decode(errors="replace"))
        return done.stdout

    def follow(self, script: str, *words: str) -> tuple[int, bytes, str]:
        """Run a long script and show what it writes to stderr; return its exit code, output and errors."""
        line, errors = self._line(f"job={shlex.quote(script)}\n{WATCHED}", words), []
        with tempfile.TemporaryFile() as output:
            # Its stdin stays open as long as the connection: that is what the script is watched by.
            with subprocess.Popen(
                line, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.PIPE, text=True, errors="replace"
            ) as running:
                for text in running.stderr or ():
                    errors.append(text)
                    told = _plain(text).rstrip()
                    if told and not told.lower().startswith("error: "):  # that becomes the error of this command
                        self.say(told)
                code = running.wait()
            output.seek(0)
            return code, output.read(), "".join(errors)

    def failure(self, doing: str, code: int, stderr: str) -> PipelineError:
        """The error that a script ended with, in one line."""
        why = _plain(last_line(stderr))
        if code == BROKEN:
            return PipelineError(f"{self.host}: the connection broke while {doing} ({why}): run the same command again")
        error = UsageError if code == UsageError.exit_code else CheckFailed
        return error(f"{self.host}: {doing} failed: {why}")

    def _line(self, script: str, words: tuple[str, ...]) -> list[str]:
        in_root = f'umask 077; mkdir -p "${{HOME:?}}/{ROOT}" && cd "$HOME/{ROOT}" || exit 1\n{script}'
        return [*self.ssh, "--", self.host, shlex.join(["sh", "-c", in_root, "sh", *words])]


@contextlib.contextmanager
def connected(host: str, config: Path | None) -> Iterator[Board]:
    """Connect to a board, once for all that is called there. UsageError, in one line, if that can't be."""
    if not shutil.which("ssh"):
        raise UsageError("--on needs OpenSSH's client: sudo apt install openssh-client")
    with tempfile.TemporaryDirectory(prefix="ssh-") as folder, tempfile.TemporaryFile() as errors:
        chosen = [f"-o{option}" for option in (*OPTIONS, f"ControlPath={folder}/s")]
        command = ("ssh", *(["-F", str(config)] if config else []))
        ssh = (*command, *chosen)
        # In the background; gone after some idle minutes, should this process be killed.
        master = [*ssh, "-oControlMaster=yes", "-oControlPersist=300", "-fN", "--", host]
        done = subprocess.run(master, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors)
        if done.returncode:
            errors.seek(0)
            raise UsageError(
                f"{host}: {_refused(shlex.join([*command, host]), errors.read().decode(errors='replace'))}"
            )
        try:
            yield Board(host, ssh)
        finally:
            subprocess.run([*ssh, "-Oexit", "--", host], capture_output=True)


def _refused(command: str, text: str) -> str:
    """Why there is no connection by a command, and what to do."""
    last = _plain(last_line(text))
    if changed := re.search(r"^Offending .* in (\S+)", text, re.MULTILINE):
        return (
            f"wrong host key: expected the one in {changed[1]}, received another; if the board was installed anew, "
            "remove that line (ssh-keygen -R) and connect once with ssh"
        )
    if "Host key verification failed" in text:
        return f"unknown host key: expected one in known_hosts; `{command}`, once, shows it and keeps it"
    if "Permission denied" in text:
        return f"{last}: expected a key that the board accepts, in an agent or in ~/.ssh; no password is asked for"
    return f"can't connect: {last}"


def folder_name(host: str) -> str:
    """The name of a board's folder on this machine: its host, without the user. UsageError for what is no host."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", host.removeprefix("ssh://").rpartition("@")[2].strip("/[]"))
    try:
        if not host.startswith("-"):  # an option of ssh
            return msgspec.convert(name, Name)
    except msgspec.ValidationError:
        pass
    raise UsageError(f"--on {host}: expected user@board, or a host of your ssh configuration")


def _plain(text: str) -> str:
    return re.sub(rf"[{UNPRINTED}]", "", text)
