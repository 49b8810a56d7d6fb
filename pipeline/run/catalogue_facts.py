"""Facts of the machine and the run for the catalogue: software, commit, configuration, energy. No secrets, no paths."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.account.ledger import AttemptEnd, LeaseStart
from pipeline.account.ledger import read as read_ledger
from pipeline.plan.hrefs import is_local, unsigned
from pipeline.write import stac

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from pipeline.account.ledger import Lease
    from pipeline.types import Plan, Receipt

COMMIT_VARIABLE = "EARTHPRESS_COMMIT"
"""Environment variable that names the commit where neither the package nor a checkout does (images)."""
GIT_S = 10.0
PACKAGES = ("numpy", "rasterio", "zarr")


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What the ledger knows about an attempt that counts.

    Attributes:
        ended: UTC of its end.
        slot_s: Seconds that it held the device.
        lease: What its process held; None where that line is lost.
    """

    ended: datetime
    slot_s: float
    lease: Lease | None


Works = dict[tuple[str, int], Work]
"""By (tile id, attempt)."""


def software(plan: Plan) -> dict[str, str]:
    """Name and version of what made the data: torch as the plan fixed it, the others as they are installed."""
    import rasterio  # noqa: PLC0415

    found = {name: metadata.version(name) for name in PACKAGES}
    return {
        "earthpress": metadata.version("earthpress"),
        "torch": plan.numerics.torch,
        "GDAL": str(rasterio.__gdal_version__),
        "Python": platform.python_version(),
        **found,
    }


def commit() -> str:
    """The commit of this software, "" when nobody knows: from the environment, the installed package or a checkout.

    A checkout with changes ends in ``-dirty``.
    """
    named = os.environ.get(COMMIT_VARIABLE, "")
    if re.fullmatch(r"[0-9A-Za-z._+-]{1,80}", named):
        return named
    return _installed_commit() or _checkout_commit(Path(__file__).resolve().parents[2])


def _installed_commit() -> str:
    """Of a package that was installed from a repository (PEP 610)."""
    text = metadata.distribution("earthpress").read_text("direct_url.json")
    try:
        found = json.loads(text or "{}")["vcs_info"]["commit_id"]
    except (ValueError, KeyError, TypeError):
        return ""
    return str(found)


def _checkout_commit(root: Path) -> str:
    """Of a folder that is a repository itself: an installed package may lie inside somebody else's."""
    program = shutil.which("git")
    if program is None or not (root / ".git").exists():
        return ""
    try:
        done = subprocess.run(
            [program, "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=GIT_S,
            check=False,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},  # who may only read must not refresh the index
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def configuration(plan: Plan) -> bytes:
    """The settings of a plan as a file: URLs unsigned, of local paths the last part only."""
    return stac.json_bytes(_public(json.loads(plan.settings)))


def _public(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _public(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_public(part) for part in value]
    return ",".join(map(_public_text, value.split(","))) if isinstance(value, str) else value


def _public_text(text: str) -> str:
    if "://" in text and not is_local(text):
        return public_url(text)
    path = Path(text.removeprefix("file://"))
    return path.name if path.is_absolute() or text.startswith("~") else text


def public_url(url: str) -> str:
    """A URL without user, password, query and fragment."""
    return unsigned(url).partition("?")[0].partition("#")[0]


def works_of(plan: Plan, receipts: Sequence[Receipt]) -> Works:
    """Read the ledger of the output; what is missing there is missing here."""
    wanted = {_key(receipt) for receipt in receipts}
    events = read_ledger(plan.output).events
    held = {event.lease: event.held for event in events if isinstance(event, LeaseStart)}
    return {
        (event.tile_id, event.attempt): Work(ended=event.utc, slot_s=event.usage.slot_s, lease=held.get(event.lease))
        for event in events
        if isinstance(event, AttemptEnd) and event.status == "won" and (event.tile_id, event.attempt) in wanted
    }


def last_end(works: Works, receipts: Sequence[Receipt]) -> str:
    """When the last of some tiles was computed, RFC 3339 in seconds; "" when the ledger does not know."""
    times = [works[_key(receipt)].ended for receipt in receipts if _key(receipt) in works]
    return max(times).strftime("%Y-%m-%dT%H:%M:%SZ") if times else ""


def energy(plan: Plan, works: Works, receipts: Sequence[Receipt]) -> dict[str, Any]:
    """``emb:energy`` of some tiles: what was measured of them and nothing else.

    The duration is the time that their attempts held the device, added up, where the ledger knows all of them. No
    energy is measured, so there are no kilowatt hours; the kind of instance is known where the user named one.
    """
    known = [works[_key(receipt)] for receipt in receipts if _key(receipt) in works]
    leases = [work.lease for work in known if work.lease is not None]
    names = sorted({lease.device_name for lease in leases if lease.device_name}) or [plan.numerics.device_name]
    instances = sorted({lease.instance for lease in leases if lease.instance})
    found: dict[str, Any] = {
        "device_type": "gpu" if plan.numerics.device == "cuda" else "cpu",
        "name": ", ".join(names),
    }
    if known and len(known) == len(receipts):
        found["inference_duration_s"] = round(sum(work.slot_s for work in known), 3)
    return found | ({"instance_type": ", ".join(instances)} if instances else {})


def _key(receipt: Receipt) -> tuple[str, int]:
    return receipt.tile_id, receipt.attempt
