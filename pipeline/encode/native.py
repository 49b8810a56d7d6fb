"""Compile a C++ file of this package at first use, keep the library, load it.

The library is built for this machine's instructions (``-march=native``) with whatever C++ compiler is found, in a few
seconds, and kept in ``$EARTHPRESS_CACHE`` or the user's cache folder. Its name is a hash of everything that decides its
code: source, flags and the macros that the compiler predefines, which hold its version and every instruction set it may
use. Different machines may therefore share a cache, and several processes may build at once: each compiles to a file of
its own and renames it into place. Nothing is loaded that another user owns or could have written.

Knows nothing of torch or of what the library does.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import DeviceError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

log = logging.getLogger(__name__)

FLAGS = ("-std=gnu++17", "-O3", "-ffp-contract=fast", "-Wno-psabi", "-shared", "-fPIC")
"""Without ``-ffast-math``: sums keep their order. ``-ffp-contract=fast`` makes a * b + c one rounding, as GCC does by
default and Clang does not."""
TARGETS = (("-march=native",), ("-mcpu=native",), ())
"""How to ask for this machine's instructions; the first that the compiler takes. The second is for ARM."""
COMPILERS = ("c++", "g++", "clang++")
TIMEOUT_S = 300.0


def load(source: Path, *, flags: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> ctypes.CDLL:
    """Load the library of a C++ file, compiling it unless that was done before.

    Args:
        source: The file; it must not include others of ours.
        flags: Compiler flags after ours.
        environment: Where ``CXX``, ``PATH``, ``EARTHPRESS_CACHE`` and the user's folders are looked up; None: the
            environment of the process.

    Returns:
        The library; calls into it release the interpreter's lock.

    Raises:
        DeviceError: There is no C++ compiler, it fails, or its result cannot be loaded.
    """
    env = dict(os.environ if environment is None else environment)
    compiler = find_compiler(env)
    target, macros = _probe(compiler, env)
    command = (*compiler, *FLAGS, *target, *flags)
    key = hashlib.sha256(b"\0".join((source.read_bytes(), macros, shlex.join(command).encode()))).hexdigest()
    name = f"{source.stem}-{key[:24]}.so"
    try:
        return _load_or_build(cache_folder(env) / name, source, command=command, env=env)
    except OSError as err:  # somebody else's, not writable, full, or mounted without permission to execute
        log.warning("compiled code cannot be kept (%s): compiling for this process alone", err)
    with tempfile.TemporaryDirectory(prefix="earthpress-") as temporary:
        try:
            return _load_or_build(Path(temporary) / name, source, command=command, env=env)
        except OSError as err:
            raise DeviceError(f"{source.name} was compiled with {compiler[0]}, but cannot be loaded: {err}") from err


def find_compiler(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Command of the C++ compiler: ``$CXX``, which may hold arguments, else the first of ``COMPILERS`` in the path.

    Raises:
        DeviceError: None is found.
    """
    path = environment.get("PATH", "")
    asked = tuple(shlex.split(environment.get("CXX", "")))
    for command in (asked, *((name,) for name in COMPILERS)):
        found = shutil.which(command[0], path=path) if command else None
        if found:
            return (found, *command[1:])
    raise DeviceError(
        f"no C++ compiler: CXX is {shlex.join(asked)!r} and none of {', '.join(COMPILERS)} is in the path"
    )


def has_compiler() -> bool:
    """Whether ``find_compiler`` finds one in the environment of the process."""
    try:
        find_compiler(os.environ)
    except DeviceError:
        return False
    return True


def cache_folder(environment: Mapping[str, str]) -> Path:
    """Where libraries are kept: ``$EARTHPRESS_CACHE``, else ``earthpress`` in the user's cache folder.

    Raises:
        OSError: The user has no home.
    """
    if environment.get("EARTHPRESS_CACHE"):
        return Path(environment["EARTHPRESS_CACHE"])
    home = Path(environment.get("HOME") or Path("~").expanduser())
    if not home.is_absolute():
        raise OSError("no HOME and no EARTHPRESS_CACHE")
    if sys.platform == "darwin":
        return home / "Library/Caches/earthpress"
    return Path(environment.get("XDG_CACHE_HOME") or home / ".cache") / "earthpress"


def _probe(compiler: tuple[str, ...], env: Mapping[str, str]) -> tuple[tuple[str, ...], bytes]:
    """The target flags that this compiler takes, and the macros it predefines with them."""
    said = ""
    for target in TARGETS:
        done = _run((*compiler, *FLAGS, *target, "-dM", "-E", "-x", "c++", "-"), env)
        if done.returncode == 0:
            return target, done.stdout
        said = said or _last_words(done.stderr)
    raise DeviceError(f"{compiler[0]} does not work as a C++ compiler: {said}")


def _load_or_build(library: Path, source: Path, *, command: tuple[str, ...], env: Mapping[str, str]) -> ctypes.CDLL:
    """Load ``library``, after building it when it is missing or broken; OSError for what the folder does not allow."""
    library.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _demand_own(library.parent)
    if library.exists():
        _demand_own(library)
        try:
            return ctypes.CDLL(str(library))
        except OSError as err:
            log.warning("%s cannot be loaded (%s): compiling it again", library, err)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=library.parent) as build:
        built = Path(build) / library.name
        begin = time.perf_counter()
        done = _run((*command, "-o", str(built), str(source)), env)
        if done.returncode != 0:
            raise DeviceError(f"{command[0]} cannot compile {source.name}: {_last_words(done.stderr)}")
        built.chmod(0o700)  # whatever the umask: only what nobody else can write is loaded again
        built.replace(library)
    log.info("compiled %s with %s in %.1f s", source.name, command[0], time.perf_counter() - begin)
    return ctypes.CDLL(str(library))


def _demand_own(path: Path) -> None:
    """Code that somebody else could have put there is never loaded.

    Raises:
        PermissionError: Another user owns the path or may write to it.
    """
    if not hasattr(os, "geteuid"):
        return
    state = path.stat()
    if state.st_uid not in (os.geteuid(), 0) or state.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"{path} belongs to somebody else or others may write to it: set EARTHPRESS_CACHE")


def _run(command: tuple[str, ...], env: Mapping[str, str]) -> subprocess.CompletedProcess[bytes]:
    """Run a compiler on empty input.

    Raises:
        DeviceError: It cannot be started or does not end.
    """
    try:
        return subprocess.run(
            command, input=b"", capture_output=True, check=False, timeout=TIMEOUT_S, env={**env, "LC_ALL": "C"}
        )
    except (OSError, subprocess.TimeoutExpired) as err:
        raise DeviceError(f"{command[0]} does not work as a C++ compiler: {err}") from err


def _last_words(output: bytes) -> str:
    lines = [line.strip() for line in output.decode(errors="replace").splitlines()]
    errors = [line for line in lines if "error" in line.lower()] or lines
    return "; ".join(errors[:3])[:500] or "it says nothing"
