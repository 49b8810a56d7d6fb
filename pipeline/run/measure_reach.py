"""What ``earthpress reach`` measures: how far an encoder looks, and the halo that a neighbourhood domain needs.

A table, a picture and, for the planner, the halo in a calibration file. The sample is that of ``measure``.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import OutputError
from pipeline.plan import domains, ramp
from pipeline.run.measure import (
    Rows,
    Shape,
    calibration_for,
    check_side,
    device,
    places_of,
    rounded,
    sample_name,
    save,
    warnings_of,
)
from pipeline.types import Calibration, SeamProfile
from pipeline.write import durable
from pipeline.write.curves import COLOURS, GREY, Chart, Curve, save_charts

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.encode.reach import Context, Edge, Mass

REACH_CELLS = 16
"""Side of the window that is looked into, tokens, where the user names none."""
DOMAIN_SITES = 2
"""Places on which the gradients of a domain are taken: it has many tokens, and places differ little."""
SHARES = (0.5, 0.9, 0.99)
"""Of the gradient, that squares around the centre shall hold."""
CALIBRATION, TABLE, PICTURE = "calibration.json", "reach.json", "reach.png"
"""Files of ``reach --output``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """What ``reach`` found.

    Attributes:
        model: Name of the model.
        shape: What it is of.
        masses: Where gradients lie, per window and of a neighbourhood domain.
        contexts: What replaced surroundings change, per window.
        edge: Error at the edge of a domain; None for models with absolute positions.
        profile: What is kept of it.
        warnings: What makes the figures less than they look.
        paths: Files written.
    """

    model: str
    shape: Shape
    masses: tuple[Mass, ...]
    contexts: tuple[Context, ...]
    edge: Edge | None
    profile: SeamProfile | None
    warnings: tuple[str, ...]
    paths: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        sides = [
            {"window_px": m.window_px, "box_px": m.box_px}
            | {f"{of}_side_px": {f"{s:g}": m.side_holding(s, of) for s in SHARES} for of in ("squared", "absolute")}
            for m in self.masses
        ]
        return asdict(self) | {"sides": sides}

    @property
    def sentence(self) -> str:
        """The finding in words."""
        first, context = self.masses[0], self.contexts[0]
        half = min(range(len(context.kept_px)), key=lambda i: abs(context.kept_px[i] - context.window_px / 2))
        change = context.changes[half]
        said = (
            f"In a window of {first.window_px} px, 90 % of the gradient of the centre token lies within a square of "
            f"{first.side_holding(0.9)} px ({first.side_holding(0.9, 'uniform')} px if it looked everywhere alike); "
            f"another place beyond {context.kept_px[half]} px changes {change.codes:.0%} of its int8 codes, by "
            f"{change.step:.1f} on average"
        )
        if self.edge is None:
            return f"{said}."
        edge = self.edge
        return (
            f"{said}. A neighbourhood domain with boxes of {edge.box_px} px needs a halo of {edge.halo_px} px "
            f"({max(edge.exact_px)} px would be exact): {edge.chosen.codes:.2%} of the codes at its edge are then "
            f"another."
        )

    def tables(self) -> tuple[tuple[str, Rows], ...]:
        """(title, header and rows) of each table."""
        found = [("Side of the square that holds a share of the gradient, px", _mass_rows(self.masses))]
        found += [
            (
                f"Centre of {c.window_px} px when all beyond a square is another place's",
                _change_rows("kept, px", c.kept_px, c.changes),
            )
            for c in self.contexts
        ]
        if self.edge is not None:
            title = f"First kept tokens of a domain with boxes of {self.edge.box_px} px, by halo"
            found.append((title, _change_rows("halo, px", self.edge.halos_px, self.edge.changes)))
        return tuple(found)


def measure_reach(
    name: str,
    shape: Shape,
    *,
    windows_px: tuple[int, ...] = (),
    box_px: int | None = None,
    calibration: str | None = None,
    output: str | None = None,
    note: Callable[[str], None] = lambda _text: None,
) -> Reach:
    """Measure how far the encoder looks, and which halo a neighbourhood domain needs.

    Args:
        name: The model.
        shape: What to measure.
        windows_px: Sides of windows to look into; none: ``REACH_CELLS`` tokens.
        box_px: Side of the boxes of neighbourhood attention; None: what a plan would take.
        calibration: As for ``measure_seams``; without ``output`` the halo is written into it.
        output: Folder for table, picture and calibration file; None: nothing is kept.
        note: As for ``measure_seams``.

    Raises:
        ConfigError: The shape is impossible, or the calibration file belongs to something else.
        CheckpointError: The model's files cannot be used.
        OutputError: The folder cannot be written, or holds other scales.
    """
    from pipeline.encode import checkpoint, reach  # noqa: PLC0415

    for side_px in windows_px:
        check_side("--window-px", side_px, shape.patch_px)
    check_side("--box-px", box_px, shape.patch_px)
    if output and Path(output).exists() and not Path(output).is_dir():
        raise OutputError(
            f"--output {output} must be a folder, for table, picture and calibration; to add to a calibration file use "
            f"--calibration {output}"
        )
    model = checkpoint.load(name, output=shape.output)
    target = str(Path(output) / CALIBRATION) if output else calibration
    kept = calibration_for(model, shape, calibration, target, note=note)
    options: dict[str, Any] = {
        "patch_px": shape.patch_px, "dates": shape.dates, "sensors": shape.sensors, "device": device(),
    }  # fmt: skip
    masses, contexts = [], []
    for window in windows_px or (REACH_CELLS * shape.patch_px,):
        note(f"looking at gradients and context in windows of {window} px")
        eye = reach.window_eye(model, window_px=window, **options)
        places = list(places_of(model, shape, window))
        masses.append(reach.gradient_mass(eye, places, scale=kept.scale))
        contexts.append(reach.context_change(eye, places, scale=kept.scale))
    edge, side = None, 0
    if model.card.version in domains.ROTARY:
        box = domains.default_box(model.card.version, shape.patch_px) if box_px is None else box_px
        exact = ramp.exact_halo_px(model.card, box, shape.patch_px)
        note(f"looking at domains with boxes of {box} px")
        eye = reach.domain_eye(model, box_px=box, halo_px=exact, **options)
        few = list(islice(places_of(model, shape, eye.window_px), DOMAIN_SITES))
        masses.append(reach.gradient_mass(eye, few, scale=kept.scale))
        side = reach.edge_side_px(box, shape.patch_px, exact)
        note(f"comparing halos up to {max(exact)} px on places of {side} px")
        places = list(places_of(model, shape, side))
        edge = reach.edge_error(model, places, box_px=box, exact_px=exact, scale=kept.scale, **options)
    profile = _halo_profile(shape, edge, side_px=side) if edge else None
    found = Reach(
        model=model.card.name,
        shape=shape,
        masses=tuple(masses),
        contexts=tuple(contexts),
        edge=edge,
        profile=profile,
        warnings=warnings_of(model),
        paths=(),
    )
    return _kept(found, kept, target=target, output=output)


def _kept(found: Reach, calibration: Calibration, *, target: str | None, output: str | None) -> Reach:
    """Write what was asked for."""
    paths = []
    if target and found.profile:
        paths.append(target)
        save(calibration.with_seams(found.profile), target)
    if output:
        paths += [str(Path(output) / TABLE), str(Path(output) / PICTURE)]
        found = replace(found, paths=tuple(paths))
        Path(output).mkdir(parents=True, exist_ok=True)
        durable.replace(Path(paths[-2]), (json.dumps(found.to_json(), indent=1, sort_keys=True) + "\n").encode())
        save_charts(paths[-1], charts(found), title=f"How far {found.model} looks", note="; ".join(found.warnings))
    return replace(found, paths=tuple(paths))


def _halo_profile(shape: Shape, edge: Edge, *, side_px: int) -> SeamProfile:
    from pipeline.encode.reach import CODE_SHARE, CODE_STEP  # noqa: PLC0415

    return SeamProfile(
        patch_px=shape.patch_px,
        periods=shape.periods,
        sensors=shape.sensors,
        box_px=edge.box_px,
        halo_px=edge.halo_px,
        edge=(rounded(edge.chosen.codes), rounded(edge.chosen.step)),
        tolerance=(CODE_SHARE, CODE_STEP),
        sample=sample_name(side_px),
    )


def _mass_rows(masses: tuple[Mass, ...]) -> Rows:
    kinds = (("absolute", "|gradient|"), ("squared", "gradient squared"), ("uniform", "everywhere alike"))
    rows = [
        (
            f"domain, boxes of {m.box_px} px" if m.box_px else f"window of {m.window_px} px",
            name,
            *(str(m.side_holding(share, of)) for share in SHARES),
        )
        for m in masses
        for of, name in kinds
    ]
    return (("", "", *(f"{share:.0%}" for share in SHARES)), *rows)


def _change_rows(label: str, sides: tuple[int, ...], changes: tuple[Any, ...]) -> Rows:
    header = (label, "change / deviation", "codes changed", "mean code step")
    rows = [
        (str(side), f"{c.deviation:.4f}", f"{c.codes:.2%}", f"{c.step:.3f}")
        for side, c in zip(sides, changes, strict=True)
    ]
    return (header, *rows)


def charts(found: Reach) -> tuple[Chart, ...]:
    """What the picture shows."""
    named = [
        (f"domain, box {m.box_px} px" if m.box_px else f"window {m.window_px} px", m, colour)
        for m, colour in zip(found.masses, COLOURS, strict=False)
    ]
    mass = [Curve(name=name, points=_points(m.sides_px, m.absolute), colour=c) for name, m, c in named]
    widest = max(found.masses, key=lambda m: m.window_px * (not m.box_px))
    alike = Curve(
        name="looking everywhere alike", points=_points(widest.sides_px, widest.uniform), colour=GREY, dashed=True
    )
    context = [
        Curve(name=f"window {c.window_px} px", points=_points(c.kept_px, [x.step for x in c.changes]), colour=colour)
        for c, colour in zip(found.contexts, COLOURS, strict=False)
    ]
    made = [
        Chart(
            title="Gradient of the centre token's vector",
            x_label="side of the square around it, px",
            y_label="share of |gradient| inside",
            curves=(alike, *mass),
        ),
        Chart(
            title="Another place beyond a square around the centre",
            x_label="side of the square that is kept, px",
            y_label="mean |step| of its int8 codes",
            curves=tuple(context),
        ),
    ]
    if found.edge is not None:
        edge, limit = found.edge, found.profile.tolerance[0] if found.profile else 0.0
        ends = (float(edge.halos_px[0]), float(edge.halos_px[-1]))
        made.append(
            Chart(
                title=f"First kept tokens of a domain, boxes of {edge.box_px} px: {edge.halo_px} px of halo suffice",
                x_label="halo, px",
                y_label="share of int8 codes changed",
                curves=(
                    Curve(name="tolerance", points=((ends[0], limit), (ends[1], limit)), colour=GREY, dashed=True),
                    Curve(
                        name="edge", points=_points(edge.halos_px, [c.codes for c in edge.changes]), colour=COLOURS[0]
                    ),
                ),
                logarithmic=True,
            )
        )
    return tuple(made)


def _points(xs: Any, ys: Any) -> tuple[tuple[float, float], ...]:
    return tuple((float(x), float(y)) for x, y in zip(xs, ys, strict=True))
