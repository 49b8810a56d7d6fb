"""How an output takes part in a store: refused early, its time step claimed, what it adds said in words."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import InvalidInputError, OutputError
from pipeline.plan import planner
from pipeline.run.folder import settings_of, store_of
from pipeline.types import Numerics
from pipeline.write import durable, steps, store
from pipeline.write.place import LocalPlace, place_of

if TYPE_CHECKING:
    from datetime import datetime

    from pipeline.run.map_layers import MapHead
    from pipeline.types import ModelCard, Plan

OWNER_FILE = "owner.json"
"""In the output folder: its identity, which stays when the folder is moved."""


def check(plan: Plan, *, heads: tuple[MapHead, ...]) -> str:
    """What a run of ``plan`` would do to its store, as a line of text; "" for a store of its own.

    Raises:
        OutputError: The store was made differently, or the time step belongs to another output.
    """
    from pipeline.run.local import store_spec  # noqa: PLC0415

    place, (start, end) = store_of(plan), step_of(plan)
    there = store.check_store(place, store_spec(plan, heads=heads))
    claimed = steps.check(place, start, owner=_owner_of(Path(plan.output)))
    if there and not claimed:
        _check_home(plan, place)
    if not settings_of(plan).store.path:
        return ""
    span = f"{start:%Y-%m-%d} to {end:%Y-%m-%d}"
    if not there:
        return f"store {place}: new, its first time step is {span}"
    known = store.times(place)
    if (start, end) in known:
        return f"store {place}: goes on with its time step {span}"
    first = known[0][0]
    return f"store {place}: adds the time step {span} to {len(known)} that it has, the first from {first:%Y-%m-%d}"


def join(plan: Plan, *, heads: tuple[MapHead, ...]) -> tuple[str, int]:
    """Make the store cover the plan and its time step belong to the plan's output; (place, index of the step).

    Raises:
        OutputError: As ``check``; or the store cannot be written.
    """
    from pipeline.run.local import store_spec  # noqa: PLC0415

    place, (start, end) = store_of(plan), step_of(plan)
    store.create_store(place, store_spec(plan, heads=heads))
    # After the store: who is refused there must not keep a time step from others.
    steps.claim(place, start, end, owner=_made_owner(Path(plan.output)), output=str(Path(plan.output).absolute()))
    return place, store.time_index(place, start, end)


def step_of(plan: Plan) -> tuple[datetime, datetime]:
    """The time step of a plan, end not included."""
    return plan.periods[0].start, plan.periods[-1].end


def kept_numerics(path: str, *, card: ModelCard) -> Numerics | None:
    """The numerics class of the store that a new output joins: what was measured for it is not measured again."""
    own: dict[str, Any] = store.root_attributes(path).get("earthpress", {}) if path else {}
    model = own.get("model", {})
    if "numerics" not in own or (model.get("sha256"), model.get("config")) != (card.sha256, card.config):
        return None
    return Numerics(**own["numerics"])


def _check_home(plan: Plan, place: str) -> None:
    """Refuse the time step of the output that a store lies in: earlier versions kept no record of whose a step is.

    Raises:
        OutputError: It is that output's.
    """
    found, start = place_of(place), step_of(plan)[0]
    if not isinstance(found, LocalPlace) or found.root.parent.resolve() == Path(plan.output).resolve():
        return
    home = found.root.parent
    try:
        theirs = planner.load_plan(str(home))
    except InvalidInputError:
        return
    if step_of(theirs)[0] == start and not settings_of(theirs).store.path:
        raise OutputError(steps.taken(place, start, output=home))


def _owner_of(output: Path) -> str:
    """The identity of an output; "" when it has none yet."""
    file = output / OWNER_FILE
    try:
        return str(json.loads(file.read_bytes())["owner"])
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise OutputError(f"{file} is damaged: it says whose the time steps of the store are; restore it") from err


def _made_owner(output: Path) -> str:
    """The identity of an output, made when it has none."""
    durable.create(output / OWNER_FILE, json.dumps({"owner": uuid.uuid4().hex}).encode())
    return _owner_of(output)
