"""Which layers an output folder, a store or GeoTIFFs give to ``serve``."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import codes
from pipeline.errors import InvalidInputError
from pipeline.run import quicklooks
from pipeline.run.folder import STORE_NAME, store_of
from pipeline.run.served import (
    READERS,
    Ground,
    Info,
    StoreLayer,
    around,
    bounds_of,
    classes_style,
    files_layers,
    ramp_style,
    table_of,
    usual_range,
    zooms,
)
from pipeline.run.stored import calibration_of
from pipeline.types import COLOUR_M, Box, Calibration, Reason
from pipeline.write import preview, store, true_colour
from pipeline.write.opened import open_zone, shared
from pipeline.write.place import place_of
from pipeline.write.zones import read_periods

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from pipeline.run.served import Describe, FilesLayer, Layer, Paint
    from pipeline.types import Period

_NAMED = re.compile(r"(?P<name>.+?)_utm\d\d(_r-?\d+_c-?\d+)?\.tif")
_TIFF = (".tif", ".tiff")
_SAMPLE_SIDE_PX = 128
_SAMPLES_PER_AXIS = 4
"""Windows of a store from which colours and ranges come when nobody kept them."""


def layers_of(places: Sequence[str]) -> tuple[Layer, ...]:
    """Every layer of what is asked for, with names that differ.

    Args:
        places: Output folders, stores (folder or URL) and GeoTIFFs.

    Raises:
        InvalidInputError: Nothing asked for, or a place that is none of these.
        OutputError: A store cannot be read.
    """
    if not places:
        raise InvalidInputError("serve needs an output folder, a store or GeoTIFFs")
    alone = len(places) == 1
    found: dict[str, Layer] = {}
    for own, layers in (*_of_files(places), *((_slug(Path(p).stem), _layers_at(p)) for p in places if not _is_tiff(p))):
        for layer in layers:
            base = layer.info.name if alone or layer.info.name.startswith(own) else f"{own}.{layer.info.name}"
            name, number = base, 1
            while name in found:
                number += 1
                name = f"{base}-{number}"
            found[name] = replace(layer, info=replace(layer.info, name=name))  # type: ignore[type-var]
    return tuple(found.values())


def _of_files(places: Sequence[str]) -> Iterator[tuple[str, tuple[Layer, ...]]]:
    """GeoTIFFs, those of one map together."""
    groups: dict[tuple[Path, str], list[str]] = {}
    for place in places:
        if _is_tiff(place):
            path = Path(place)
            match = _NAMED.fullmatch(path.name)
            groups.setdefault((path.parent, match["name"] if match else path.stem), []).append(place)
    for (_, name), paths in groups.items():
        yield _slug(name), files_layers(_slug(name), name, paths)


def _is_tiff(place: str) -> bool:
    return Path(place).suffix.lower() in _TIFF and Path(place).is_file()


def _layers_at(place: str) -> tuple[Layer, ...]:
    path = Path(place)
    if "://" in place or (path / "zarr.json").is_file():
        return _store_layers(_Held.of(place))
    if path.is_dir():
        return _output_layers(place)
    raise InvalidInputError(f"{place} is not an output folder, a store or a GeoTIFF on this machine")


def _output_layers(output: str) -> tuple[Layer, ...]:
    from pipeline.plan.planner import load_plan  # noqa: PLC0415

    if not (Path(output) / "plan").is_dir() and (Path(output) / STORE_NAME / "zarr.json").is_file():
        return _store_layers(_Held.of(str(Path(output) / STORE_NAME)))
    plan = load_plan(output)
    held = _Held.of(store_of(plan), basis=quicklooks.basis_of(plan))
    step = store.time_index(held.path, plan.periods[0].start, plan.periods[-1].end)
    pictures, maps = _named(Path(output) / "preview"), _named(Path(output) / "maps")
    below = {name: files_layers(name, name, paths)[0] for name, paths in pictures.items()}
    held = replace(held, below=below, below_step=step, without=frozenset(f"map_{name}" for name in maps))
    shown: list[Layer] = []
    for name, paths in maps.items():
        shown += files_layers(name, f"Map {name}", paths, warning=held.warning)
    shown += _store_layers(held)
    for name, paths in pictures.items():
        if name.startswith("clear_"):
            (layer,) = files_layers(name, f"Clear share, {name.removeprefix('clear_')}", paths)
            legend = tuple((f"{value} %", preview.ramp(100)[value]) for value in (0, 25, 50, 75, 100))
            shown.append(replace(layer, info=replace(layer.info, legend=legend)))
    return tuple(shown)


def _named(folder: Path) -> dict[str, list[str]]:
    """The GeoTIFFs of a folder by the name before their zone."""
    found: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*.tif")):
        match = _NAMED.fullmatch(path.name)
        if match:
            found.setdefault(match["name"], []).append(str(path))
    return found


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Held:
    """A store to show.

    Attributes:
        path: Folder or URL.
        group: A zone, for what is the same in all.
        extents: The box under the arrays of every zone.
        basis: Frozen colours; None: made from a sample.
        warning: Of the store.
        below: What shows small zooms, by name of the look.
        below_step: Time step that ``below`` shows.
        without: Arrays that something else shows.
        gate: Shared by all layers.
    """

    path: str
    group: Any
    extents: tuple[Box, ...]
    warning: str
    basis: preview.Basis | None = None
    below: dict[str, FilesLayer] = field(default_factory=dict)
    below_step: int = -1
    without: frozenset[str] = frozenset()
    gate: threading.BoundedSemaphore = field(default_factory=lambda: threading.BoundedSemaphore(READERS))

    @classmethod
    def of(cls, path: str, *, basis: preview.Basis | None = None) -> _Held:
        """Open a store.

        Raises:
            OutputError: There is none.
        """
        place = place_of(path)
        extents = store.zones(path)
        with shared(place):
            group, _ = open_zone(place, extents[0].zone)
        kept = place.sibling(quicklooks.BASIS_SUFFIX).read() if basis is None else None
        return cls(
            path=path,
            group=group,
            extents=extents,
            warning=str(group.attrs.get("warning", "")),
            basis=preview.Basis.from_json(kept.decode()) if kept else basis,
        )

    @property
    def calibration(self) -> Calibration:
        """What is needed of it to read the codes (scores, for ``pca``)."""
        return calibration_of(self.group)

    def samples(self, name: str, step: int) -> Iterator[tuple[Box, NDArray[Any]]]:
        """Windows of an array, spread over every zone, that hold anything."""
        for extent in self.extents:
            side = min(_SAMPLE_SIDE_PX, extent.height, extent.width)
            for part in range(_SAMPLES_PER_AXIS**2):
                down, across = divmod(part, _SAMPLES_PER_AXIS)
                row = extent.row + (extent.height - side) * down // (_SAMPLES_PER_AXIS - 1)
                col = extent.col + (extent.width - side) * across // (_SAMPLES_PER_AXIS - 1)
                box = Box(zone=extent.zone, res_m=extent.res_m, row=row, col=col, height=side, width=side)
                yield box, store.read_box(self.path, box, name, time_index=step)

    def layer(self, info: _Named, arrays: tuple[str, ...], step: int, *, look: str = "") -> StoreLayer:
        """A layer of some arrays."""
        coarse = arrays[0] == true_colour.NAME
        boxes = tuple(extent.cover(COLOUR_M) if coarse else extent for extent in self.extents)
        zones = tuple(Ground(box=box, bounds=bounds_of(box)) for box in boxes)
        bounds = around([zone.bounds for zone in zones])
        chosen = [self.group[name] for name in arrays]
        pixel_bytes = sum(int(np.prod(a.shape[1:-2])) * a.dtype.itemsize for a in chosen)
        first, native = zooms(bounds, boxes[0].res_m, pixel_bytes=pixel_bytes)
        below = self.below.get(look) if step == self.below_step else None
        return StoreLayer(
            info=Info(
                name=_slug(info.name),
                title=info.title,
                bounds=bounds,
                min_zoom=first if below is None else 0,
                max_zoom=native,
                legend=info.legend,
                warning=info.warning,
            ),
            path=self.path,
            arrays=arrays,
            time_index=step,
            zones=zones,
            paint=info.paint,
            describe=info.describe,
            from_zoom=first,
            below=below,
            gate=self.gate,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Named:
    """A layer before its place is known."""

    name: str
    title: str
    paint: Paint
    describe: Describe
    legend: tuple[tuple[str, str], ...] = ()
    warning: str = ""


def _store_layers(held: _Held) -> tuple[Layer, ...]:
    steps, periods = store.times(held.path), read_periods(held.group)
    names = tuple(sorted(held.group.array_keys()))
    found: list[Layer] = []
    for step, (start, end) in enumerate(steps):
        suffix = f"_{start:%Y-%m-%d}" if len(steps) > 1 else ""
        span = f", {start:%Y-%m-%d} to {end:%Y-%m-%d}"
        colours = _embeddings(held, step, suffix=suffix, span=span)
        found += [] if colours is None else [colours]
        for name in names:
            if name.startswith("map_") and not _shown_elsewhere(name, held.without):
                found.append(held.layer(_map(held, name, step, suffix=suffix, span=span), (name,), step))
        if true_colour.NAME in names:
            found += [_true_colour(held, step, index, period) for index, period in enumerate(periods[step])]
        counts = _counts(len(periods[step]), suffix=suffix, span=span)
        found.append(held.layer(counts, ("n_obs", "reason"), step, look="observations"))
    return tuple(found)


def _shown_elsewhere(name: str, without: frozenset[str]) -> bool:
    """Whether a GeoTIFF shows a map, or a band beside it."""
    return any(name == other or name.startswith(f"{other}_") for other in without) or name == "map_embedding_spread"


def _embeddings(held: _Held, step: int, *, suffix: str, span: str) -> StoreLayer | None:
    calibration = held.calibration
    basis = held.basis or _sampled_basis(held, step, calibration)
    if basis is None:
        return None
    arrays = ("embeddings", "pixel_scale") if calibration.method == "per_pixel" else ("embeddings",)

    def coded(values: tuple[NDArray[Any], ...]) -> codes.Coded:
        scale = values[1][np.newaxis] if len(values) > 1 else None
        return codes.Coded(codes=values[0][:, np.newaxis], pixel_scale=scale)

    def paint(values: tuple[NDArray[Any], ...]) -> NDArray[np.uint8]:
        return np.asarray(preview.render_coded(coded(values), calibration, basis)[0])

    def describe(values: tuple[NDArray[Any], ...]) -> dict[str, Any]:
        vector = codes.decode(coded(values), calibration).reshape(-1)
        what = "scores" if calibration.method == "pca" else "embedding"
        return {what: [float(f"{value:.6g}") for value in vector]}

    named = _Named(
        name=f"embeddings{suffix}",
        title=f"Embeddings: three principal components as red, green, blue{span}",
        paint=paint,
        describe=describe,
        warning=held.warning,
    )
    return held.layer(named, arrays, step, look="quicklook")


def _sampled_basis(held: _Held, step: int, calibration: Calibration) -> preview.Basis | None:
    vectors = []
    for box, stored in held.samples("embeddings", step):
        thin = stored[:, ::4, ::4].reshape(len(stored), -1)
        scale = None
        if calibration.method == "per_pixel":
            scale = store.read_box(held.path, box, "pixel_scale", time_index=step)[::4, ::4].reshape(-1)
        coded = codes.Coded(codes=thin, pixel_scale=scale)
        vectors.append(codes.decode(coded, calibration)[:, coded.valid].T)
    found = np.concatenate(vectors)
    return preview.pca_basis(found) if len(found) >= quicklooks.MIN_SAMPLE else None


def _map(held: _Held, name: str, step: int, *, suffix: str, span: str) -> _Named:
    array = held.group[name]
    attrs, short = dict(array.attrs), name.removeprefix("map_")
    title = f"Map {attrs.get('long_name', short)}{span}"
    if "flag_values" in attrs:
        texts = attrs.get("class_names") or attrs["flag_meanings"].split()
        classes = tuple(zip(attrs["flag_values"], texts, attrs["flag_colors"].split(), strict=True))
        paint, describe = classes_style(classes)
        legend = tuple((text, colour) for _, text, colour in classes)
    else:
        nodata = float(attrs.get("nodata", 255)) if array.dtype == np.uint8 else None
        low, high = (0.0, 100.0) if nodata is not None else usual_range([v for _, v in held.samples(name, step)])
        paint, describe, legend = ramp_style(low=low, high=high, nodata=nodata, units=str(attrs.get("units", "")))
    return _Named(
        name=f"{short}{suffix}", title=title, paint=paint, describe=describe, legend=legend, warning=held.warning
    )


def _true_colour(held: _Held, step: int, index: int, period: Period) -> StoreLayer:
    def paint(values: tuple[NDArray[Any], ...]) -> NDArray[np.uint8]:
        return np.asarray(preview.brightened(preview.opaque(values[0][index][:, np.newaxis]))[0])

    def describe(values: tuple[NDArray[Any], ...]) -> dict[str, Any]:
        shares = true_colour.reflectance(values[0][index].reshape(-1))
        return {"reflectance": {name: round(float(v), 4) for name, v in zip(true_colour.CHANNELS, shares, strict=True)}}

    start = f"{period.start:%Y-%m-%d}"
    title = f"True colours, {start} to {period.end:%Y-%m-%d}"
    named = _Named(name=f"true_colour_{start}", title=title, paint=paint, describe=describe)
    return held.layer(named, (true_colour.NAME,), step, look=named.name)


def _counts(periods: int, *, suffix: str, span: str) -> _Named:
    most = max(periods, 1)
    colours = preview.ramp(most)
    table = table_of(dict(enumerate(colours)))

    def paint(values: tuple[NDArray[Any], ...]) -> NDArray[np.uint8]:
        out = np.asarray(table[np.minimum(values[0], most)])
        out[(values[1] == Reason.NOT_REQUESTED) | (values[1] == Reason.OTHER_ZONE)] = 0
        return out

    def describe(values: tuple[NDArray[Any], ...]) -> dict[str, Any]:
        reason = Reason(int(values[1].reshape(-1)[0])).name.lower()
        return {"observations": int(values[0].reshape(-1)[0]), "of": periods, "reason": reason}

    ticks = sorted({round(share * most / 4) for share in range(5)}) if most > 6 else range(most + 1)
    return _Named(
        name=f"observations{suffix}",
        title=f"Periods with an observation{span}",
        paint=paint,
        describe=describe,
        legend=tuple((f"{tick} of {most}", colours[tick]) for tick in ticks),
    )


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip(".") or "layer"
