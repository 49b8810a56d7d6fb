"""From a store to the files of its maps, and what was made of what: idempotent, with a receipt of its own.

A map is made again when the committed objects, its head or the way of making have changed. The receipt is written after
the files of each map, so that a process that is killed leaves whole files and no claim, and the next call makes them
again, byte for byte. Only one process at a time finalises an output.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import InvalidInputError, OutputError
from pipeline.plan.planner import load_plan
from pipeline.run import class_maps, ground
from pipeline.run.class_maps import ClassMap, MapFiles, ValueMap
from pipeline.run.folder import output_of
from pipeline.types import Plan, Receipt, Tile, content_hash
from pipeline.write import durable, geotiff, mosaic, qml

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pipeline.write.durable import Checkpoint

RECEIPT = "finalised.json"
LOCK = ".finalise.lock"
VERSION = 1
"""Raised when the same store would give other files."""
SWEEP_S = 3600.0
"""Small temporary files of killed processes are deleted when they are older."""
MAP_FIELDS = tuple(f.name for f in fields(MapFiles))

Tiles = tuple[tuple[Tile, Receipt], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mosaic:
    """One file over all zones of a map.

    Attributes:
        map_name: The map.
        crs: ``EPSG:3035``.
        resolution_m: Side of a pixel that was asked for, metres; None: that of the map.
        path: The GeoTIFF.
        style: Its QGIS style.
    """

    map_name: str
    crs: str
    resolution_m: float | None
    path: str
    style: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finalised:
    """What there is now.

    Attributes:
        maps: (name, its files).
        mosaics: Files over all zones that are up to date.
        stale: Paths of such files that are older than their map.
        written: Paths of what this call made; empty when everything was up to date.
        left: GeoTIFFs of maps whose head is gone: nothing keeps them up to date.
    """

    maps: tuple[tuple[str, MapFiles], ...] = ()
    mosaics: tuple[Mosaic, ...] = ()
    stale: tuple[str, ...] = ()
    written: tuple[str, ...] = ()
    left: tuple[str, ...] = ()

    def of(self, kind: str) -> tuple[str, ...]:
        """The files of one kind (a field of ``MapFiles``) of all maps."""
        return tuple(path for _, files in self.maps for path in getattr(files, kind))

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "maps": {name: asdict(files) for name, files in self.maps},
            "mosaics": [asdict(made) for made in self.mosaics],
            "stale": list(self.stale),
            "written": list(self.written),
            "left": list(self.left),
        }

    def lines(self) -> tuple[str, ...]:
        """For people: one line per file that one would open."""
        named = [(name, "map", files.cogs) for name, files in self.maps]
        named += [(name, "all", files.virtuals) for name, files in self.maps]
        named += [(name, "areas", files.areas) for name, files in self.maps]
        named += [(made.map_name, "mosaic", (made.path,)) for made in self.mosaics]
        listed = [f"{label:<10} {path}" for _, label, paths in sorted(named) for path in paths]
        listed += [f"{'outdated':<10} {path} (earthpress finalise makes it again)" for path in self.stale]
        listed += [
            f"{'left over':<10} {path} (its map is no more: delete it if you do not want it)" for path in self.left
        ]
        done = f"{len(self.written)} files written" if self.written else "nothing has changed: no file was written"
        return (*listed, done)


def finalise(
    place: str,
    *,
    crs: str | None = None,
    only: str | None = None,
    resolution_m: float | None = None,
    at: Checkpoint = durable.passed,
) -> Finalised:
    """Bring the files of every map up to date, also mosaics that were asked for before; add one in ``crs``.

    Everything that the receipt lists is read and compared with its sha256; what was changed or lost is made again.

    Args:
        place: Output folder or its store.
        crs: Also make one file of all zones in this plane, ``EPSG:3035``; ``auto``: the map's own zone, or for several
            zones EPSG:3035 within Europe and EPSG:4326 elsewhere.
        only: Name of a map: leave the others alone.
        resolution_m: Side of a pixel of that file, metres on the ground; None: that of the map.
        at: Called after every step that a kill can separate (tests).

    Raises:
        InvalidInputError: No plan, no such map, or a CRS that is unknown or does not fit.
        OutputError: Nothing is committed, or a file cannot be written.
    """
    plan = load_plan(output_of(place))
    tiles = ground.committed(plan)
    if not tiles:
        raise OutputError(f"{plan.output} holds no committed tile: earthpress run {plan.output}")
    if crs is not None:
        mosaic.checked_crs(crs)
    if resolution_m is not None and (crs is None or not resolution_m > 0):
        raise InvalidInputError(f"a resolution of {resolution_m} m: it must be positive and belongs to a mosaic")
    return _Room(plan, at=at).bring(only=only, mosaics=True, checked=True, wanted=(crs, resolution_m))


def bring(plan: Plan) -> Finalised:
    """Bring the maps of a plan up to date at the end of a run: files are trusted by their sizes, mosaics stay."""
    return _Room(plan).bring()


def make_map(plan: Plan, made: ClassMap | ValueMap) -> MapFiles:
    """Write the files of one map now and remember them.

    Args:
        plan: What made the store.
        made: A map; one of the same name is replaced.
    """
    room = _Room(plan)
    with durable.locked(room.root / LOCK, exclusive=True):
        return room.make(made, ground.committed(plan))


class _Room:
    """The output of a plan and its receipt."""

    def __init__(self, plan: Plan, *, at: Checkpoint = durable.passed) -> None:
        self.plan, self.at = plan, at
        self.root = Path(plan.output)
        self.written: list[str] = []

    def bring(
        self,
        *,
        only: str | None = None,
        mosaics: bool = False,
        checked: bool = False,
        wanted: tuple[str | None, float | None] = (None, None),
    ) -> Finalised:
        with durable.locked(self.root / LOCK, exclusive=True):
            durable.sweep(self.root / "maps", older_than_s=SWEEP_S)
            geotiff.sweep(self.root / "maps")  # also of a mosaic that nobody asks for again
            tiles = ground.committed(self.plan)  # under the lock: whoever comes later sees at least as much
            try:
                chosen = tuple(self._chosen(only))
            except InvalidInputError:
                # The file of a head is gone. The end of a run, and a report of an old one, need it no more.
                if checked or not self._same_ground(tiles):
                    raise
                return self._found(names=None)
            for made in chosen:
                if not self._current("maps", made.name, self._state(made, tiles), checked=checked):
                    self.make(made, tiles)
            if mosaics:
                for made in chosen:
                    self._mosaics(made, wanted=wanted, checked=checked)
            return self._found(names={made.name for made in self._chosen(None)})

    def make(self, made: ClassMap | ValueMap, tiles: Tiles) -> MapFiles:
        files = class_maps.publish_map(self.plan, [tile for tile, _ in tiles], made, at=self.at)
        paths = [path for kind in MAP_FIELDS for path in getattr(files, kind)]
        listed = {kind: [self._name(path) for path in getattr(files, kind)] for kind in MAP_FIELDS}
        state = {"state": self._state(made, tiles), "ground": _ground(self.plan, tiles)}
        self._remember("maps", made.name, state | listed, paths)
        return files

    def _chosen(self, only: str | None) -> Iterator[ClassMap | ValueMap]:
        every = (*class_maps.store_maps(self.plan), *class_maps.kept_maps(self.plan))
        names = [made.name for made in every]
        if only is not None and only not in names:
            raise InvalidInputError(f"{self.root} has no map {only!r}; it has {', '.join(names) or 'none'}")
        return (made for made in every if only in (None, made.name))

    def _mosaics(
        self,
        made: ClassMap | ValueMap,
        *,
        wanted: tuple[str | None, float | None],
        checked: bool,
    ) -> None:
        held = self._read()
        virtuals = [self.root / name for name in held["maps"][made.name]["virtuals"]]
        crs, resolution_m = wanted
        asked = [(r["crs"], r["resolution_m"]) for r in held["mosaics"].values() if r["map"] == made.name]
        if crs is not None:
            asked.append((mosaic.chosen_crs(crs, virtuals), resolution_m))
        for target, side_m in dict.fromkeys(asked):
            path = self._mosaic_path(made.name, target, side_m)
            state = _mosaic_state(held["maps"][made.name], target, side_m)
            if self._current("mosaics", path.name, state, checked=checked):
                continue
            mosaic.write_mosaic(path, virtuals, crs=target, side_m=side_m, at=self.at)
            style = qml.write_style(path, made.style, at=self.at)
            record = {"state": state, "map": made.name, "crs": target, "resolution_m": side_m, "style": style.name}
            self._remember("mosaics", path.name, record, [str(path), str(style)])

    def _mosaic_path(self, name: str, crs: str, side_m: float | None) -> Path:
        side = "" if side_m is None else f"_{side_m:g}m"
        return self.root / "maps" / f"{name}_{crs.lower().replace(':', '')}{side}.tif"

    def _state(self, made: ClassMap | ValueMap, tiles: Tiles) -> str:
        return content_hash([VERSION, _ground(self.plan, tiles), made.identity])

    def _same_ground(self, tiles: Tiles) -> bool:
        maps = self._read()["maps"]
        return bool(maps) and all(
            record["ground"] == _ground(self.plan, tiles)
            and self._current("maps", name, record["state"], checked=False)
            for name, record in maps.items()
        )

    def _current(self, kind: str, name: str, state: str, *, checked: bool) -> bool:
        record = self._read()[kind].get(name)
        return (
            record is not None
            and record["state"] == state
            and all(_same(self.root / file, seen, checked=checked) for file, seen in record["files"].items())
        )

    def _remember(self, kind: str, name: str, record: dict[str, Any], paths: Sequence[str]) -> None:
        held = self._read()
        sides = [side for path in paths if Path(side := f"{path}.aux.xml").is_file()]
        files = {self._name(path): _seen(Path(path)) for path in (*paths, *sides)}
        for old in held[kind].get(name, {"files": {}})["files"]:
            if old not in files:  # of a smaller or larger area, or with bands that there are no more
                (self.root / old).unlink(missing_ok=True)
        held[kind][name] = {**record, "files": files}
        self.at("made")
        text = json.dumps({"version": VERSION, **held}, indent=1, sort_keys=True) + "\n"
        durable.replace(self.root / RECEIPT, text.encode(), at=self.at)
        self.written += paths

    def _read(self) -> dict[str, dict[str, Any]]:
        """What the receipt says; nothing where it is missing, damaged or of another version."""
        try:
            record = json.loads((self.root / RECEIPT).read_text(encoding="utf-8"))
            if record["version"] == VERSION:
                return {"maps": dict(record["maps"]), "mosaics": dict(record["mosaics"])}
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return {"maps": {}, "mosaics": {}}

    def _found(self, *, names: set[str] | None) -> Finalised:
        """What the receipt lists of the maps ``names``; None: of all."""
        held = self._read()
        maps, mosaics, stale = [], [], []
        for name, record in sorted(held["maps"].items()):
            if names is None or name in names:
                listed = {kind: tuple(str(self.root / file) for file in record[kind]) for kind in MAP_FIELDS}
                maps.append((name, MapFiles(**listed)))
        for file, record in sorted(held["mosaics"].items()):
            path = self.root / "maps" / file
            known = record["map"] in held["maps"] and (names is None or record["map"] in names)
            if not known or not path.is_file():
                continue
            if record["state"] != _mosaic_state(held["maps"][record["map"]], record["crs"], record["resolution_m"]):
                stale.append(str(path))
                continue
            mosaics.append(
                Mosaic(
                    map_name=record["map"],
                    crs=record["crs"],
                    resolution_m=record["resolution_m"],
                    path=str(path),
                    style=str(path.with_name(record["style"])),
                )
            )
        gone = {name: record for name, record in held["maps"].items() if names is not None and name not in names}
        left = [self.root / file for record in gone.values() for file in record["cogs"]]
        return Finalised(
            maps=tuple(maps),
            mosaics=tuple(mosaics),
            stale=tuple(stale),
            written=tuple(self.written),
            left=tuple(str(path) for path in left if path.is_file()),
        )

    def _name(self, path: str) -> str:
        return Path(path).relative_to(self.root).as_posix()


def _ground(plan: Plan, tiles: Tiles) -> str:
    """Hash of everything committed."""
    return content_hash([plan.recipe, [[t.id, r.fingerprint, r.objects] for t, r in tiles]])


def _mosaic_state(of_map: dict[str, Any], crs: str, side_m: float | None) -> str:
    return content_hash([of_map["state"], crs, side_m])


def _seen(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": path.stat().st_size}


def _same(path: Path, seen: dict[str, Any], *, checked: bool) -> bool:
    """Whether a file is the one of the receipt: by its bytes, or for a quick look by its size."""
    if not path.is_file():
        return False
    return _seen(path) == seen if checked else path.stat().st_size == seen["bytes"]
