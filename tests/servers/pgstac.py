"""stac-fastapi.pgstac, the engine of the Planetary Computer's API, on a PostgreSQL of its own; see README.md here.

::

    python3 tests/servers/pgstac.py install             # PostGIS by apt-get, the API into FOLDER/venv: what is missing
    python3 tests/servers/pgstac.py start               # prints http://127.0.0.1:PORT
    EARTHPRESS_TEST_PGSTAC=http://127.0.0.1:PORT make test PYTEST_ARGS='-m integration'
    python3 tests/servers/pgstac.py stop                # stops both and removes the database

FOLDER, the second argument, is ``${XDG_CACHE_HOME:-~/.cache}/earthpress-tests`` by default. The database lies in a
temporary folder of its own, which the postgres user can enter. Both listen on the loopback interface only, on free
ports. Installing needs Debian and, unless PostGIS is there already, root; PostgreSQL never runs as root. Needs the
standard library only, so that any python3 runs it.
"""

from __future__ import annotations

import argparse
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
from pathlib import Path

PACKAGES = ("stac-fastapi.pgstac==7.2.0", "pypgstac[psycopg]==0.10.0", "uvicorn==0.54.0")
DEBIAN_PACKAGE = "postgresql-postgis"
"""Debian's default PostgreSQL with PostGIS 3."""
STATE = "running.json"
PREFIX = "earthpress-pgstac-"
START_S = 60.0
STOP_S = 15.0
INSTALL_S = 300.0
SETTINGS = ("listen_addresses=127.0.0.1", "timezone=UTC", "fsync=off", "shared_buffers=32MB", "max_connections=40")


class PgstacError(Exception):
    """It cannot be installed or started here."""


def postgres_bin() -> Path | None:
    """Programs of the newest PostgreSQL on this machine that has PostGIS."""
    controls = Path("/usr/share/postgresql").glob("*/extension/postgis.control")
    versions = sorted((p.parts[4] for p in controls if p.parts[4].isdigit()), key=int)
    programs = [Path("/usr/lib/postgresql") / version / "bin" for version in versions]
    return next((folder for folder in reversed(programs) if (folder / "initdb").is_file()), None)


def install(folder: Path) -> None:
    """Install PostGIS (Debian) and the API (into a venv in the folder), whichever is missing."""
    if postgres_bin() is None:
        if os.geteuid() != 0:
            raise PgstacError(f"there is no PostGIS: install Debian's package {DEBIAN_PACKAGE}")
        quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        wait = ("-o", "DPkg::Lock::Timeout=120")
        _call(["apt-get", *wait, "update"], env=quiet, limit_s=INSTALL_S)
        packages = [*wait, "--yes", "--no-install-recommends", "install", DEBIAN_PACKAGE]
        _call(["apt-get", *packages], env=quiet, limit_s=INSTALL_S)
    stamp = folder / "venv" / ".installed"  # written last: an installation that broke off is made again
    if not stamp.is_file() or stamp.read_text(encoding="utf-8").split() != list(PACKAGES):
        venv.create(folder / "venv", with_pip=True, clear=True)
        pip = [str(folder / "venv" / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
        _call([*pip, "install", "--quiet", *PACKAGES], limit_s=INSTALL_S)
        stamp.write_text("\n".join(PACKAGES), encoding="utf-8")


def start(folder: Path) -> str:
    """Start database and API; returns the address of the landing page. What was started is stopped on failure."""
    programs = postgres_bin()
    if programs is None or not (folder / "venv" / ".installed").is_file():
        raise PgstacError(f"PostGIS or the API of {folder} is not installed: run the command install")
    if (folder / STATE).exists():
        raise PgstacError(f"the server of {folder} runs already, or died: stop it first")
    place = Path(tempfile.mkdtemp(prefix=PREFIX))
    place.chmod(0o711)  # the postgres user passes through
    state: dict[str, object] = {"postgres": str(programs), "place": str(place)}
    _save(folder, state)
    try:
        access = _start_database(place, programs)
        _call([str(folder / "venv" / "bin" / "pypgstac"), "migrate"], env=access, limit_s=START_S)
        port = _free_port()
        state["api"] = _start_api(folder, place, port, access)
        _save(folder, state)
        url = f"http://127.0.0.1:{port}"
        _wait_for(url, int(str(state["api"])), place / "api.log")
    except BaseException:
        stop(folder)
        raise
    return url


def stop(folder: Path) -> None:
    """Stop what ``start`` started and remove the data; what is not running is no error."""
    state_file = folder / STATE
    if not state_file.exists():
        return
    state = json.loads(state_file.read_text(encoding="utf-8"))
    if state.get("api"):
        _end(int(state["api"]))
    place = Path(state["place"])
    data = place / "data"
    if (data / "postmaster.pid").exists():
        command = [str(Path(state["postgres"]) / "pg_ctl"), "--pgdata", str(data), "--mode", "immediate", "stop"]
        subprocess.run(_as_postgres(command), check=False, capture_output=True, timeout=STOP_S, cwd="/")
    if place.name.startswith(PREFIX):
        shutil.rmtree(place, ignore_errors=True)
    state_file.unlink()


def _start_database(place: Path, programs: Path) -> dict[str, str]:
    """Make a cluster and start it; returns the environment that libpq and the API need."""
    data, sockets, password = place / "data", place / "socket", secrets.token_hex(16)
    secret = place / "password"
    for path in (data, sockets):
        path.mkdir(mode=0o700)
    secret.touch(mode=0o600)
    secret.write_text(password, encoding="utf-8")
    if os.geteuid() == 0:
        user = pwd.getpwnam("postgres")
        for path in (data, sockets, secret):
            os.chown(path, user.pw_uid, user.pw_gid)
    _call(
        _as_postgres(
            [
                *(str(programs / "initdb"), "--pgdata", str(data), "--username=postgres", f"--pwfile={secret}"),
                *("--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"),
            ]
        ),
        limit_s=START_S,
    )
    secret.unlink()
    port = _free_port()
    settings = " ".join(f"-c {s}" for s in (*SETTINGS, f"port={port}", f"unix_socket_directories={sockets}"))
    _call(
        _as_postgres(
            [
                *(str(programs / "pg_ctl"), "--pgdata", str(data), "--log", str(data / "server.log")),
                *("--options", settings, "--wait", "start"),
            ]
        ),
        limit_s=START_S,
    )
    access = {"PGHOST": "127.0.0.1", "PGPORT": str(port), "PGUSER": "postgres", "PGPASSWORD": password}
    return os.environ | access | {"PGDATABASE": "postgres"}


def _start_api(folder: Path, place: Path, port: int, access: dict[str, str]) -> int:
    program = [str(folder / "venv" / "bin" / "uvicorn"), "--factory", "stac_fastapi.pgstac.app:create_app"]
    with (place / "api.log").open("wb") as log:
        process = subprocess.Popen(
            [*program, "--host", "127.0.0.1", "--port", str(port), "--log-level", "warning"],
            # Tests put their own collections and items in.
            env=access | {"ENABLE_TRANSACTIONS_EXTENSIONS": "TRUE"},
            cwd=place,  # a .env elsewhere would be read
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in the tests' terminal is not meant for it
        )
    return process.pid


def _wait_for(url: str, pid: int, log: Path) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.2)
        if os.waitpid(pid, os.WNOHANG)[0]:
            break
    raise PgstacError(f"the API does not start: {log.read_text(errors='replace')[-2000:]}")


def _end(pid: int) -> None:
    """End the API's process, if the number is still its own."""
    command = Path(f"/proc/{pid}/cmdline")
    for number in (signal.SIGTERM, signal.SIGKILL):
        until = time.monotonic() + STOP_S
        while command.exists() and b"stac_fastapi" in command.read_bytes():
            os.kill(pid, number)
            time.sleep(0.1)
            if time.monotonic() > until:
                break


def _as_postgres(command: list[str]) -> list[str]:
    """PostgreSQL refuses to run as root."""
    return ["runuser", "-u", "postgres", "--", *command] if os.geteuid() == 0 else command


def _call(command: list[str], *, limit_s: float, env: dict[str, str] | None = None) -> None:
    try:
        done = subprocess.run(
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=limit_s,
            env=env,
            cwd="/",
        )
    except (OSError, subprocess.TimeoutExpired) as err:
        raise PgstacError(f"{command[0]}: {err}") from err
    if done.returncode:
        text = done.stdout.decode(errors="replace")[-2000:]
        raise PgstacError(f"{' '.join(command[:6])} ... ended with {done.returncode}: {text}")


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _save(folder: Path, state: dict[str, object]) -> None:
    (folder / STATE).write_text(json.dumps(state), encoding="utf-8")


def main() -> int:
    """Run one of the commands; the URL goes to stdout, everything else to stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["install", "start", "stop"])
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    parser.add_argument("folder", type=Path, nargs="?", default=caches / "earthpress-tests")
    asked = parser.parse_args()
    folder = asked.folder.absolute()
    try:
        if asked.command == "install":
            folder.mkdir(parents=True, exist_ok=True)
            install(folder)
        elif asked.command == "start":
            print(start(folder), flush=True)
        else:
            stop(folder)
    except PgstacError as err:
        print(f"pgstac.py {asked.command}: {err}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
