"""The map of the report page: layers over each other, tiles, area, values under the cursor.

Leaflet comes from the installed package XStatic-Leaflet and goes into the page, licence included; nothing is fetched.
There is no basemap for the same reason: a graticule and a scale bar say where one is. What the script needs of the run
is JSON in a data block, which no browser executes.
"""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import InvalidInputError
from pipeline.write.page_tables import badge, paragraph

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pipeline.write.page_values import MapView, Picture

MAX_TILES = 5000
"""Tiles that are drawn; browsers become slow beyond some ten thousand shapes."""
PALETTE = 255
"""Colours of a picture in the page; one more is transparent. A third of the bytes of 24 bits, and the eye sees no
difference at map size."""
MAX_TICKS = 6
"""Texts under a ramp that fit beside each other."""
_HEX = re.compile(r"#[0-9a-fA-F]{6}")
_BACKGROUNDS = ("base", "period")
_CLEANED = (
    (re.compile(r"^//# sourceMappingURL=.*$", re.MULTILINE), ""),
    (re.compile(r"[^{}]*\{[^{}]*url\([^{}]*\}"), ""),
)
"""What would make a browser ask for a file: the map of the source, and rules with images of controls not used here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaflet:
    """The library as text without outside resources.

    Attributes:
        script: Its script, with the licence.
        style: Its style sheet.
        version: E.g. ``1.9.3``.
    """

    script: str
    style: str
    version: str


@cache
def leaflet() -> Leaflet:
    """Read Leaflet from the installed package; its script refers to a licence, which must go with it."""
    from xstatic.pkg import leaflet as package  # noqa: PLC0415

    folder = Path(package.BASE_DIR)
    script, style = ((folder / name).read_text(encoding="utf-8") for name in ("leaflet.js", "leaflet.css"))
    for pattern, text in _CLEANED[:1]:
        script = pattern.sub(text, script)
    for pattern, text in _CLEANED:
        style = pattern.sub(text, style)
    return Leaflet(script=f"{script}\n/* {asset('leaflet-licence.txt')} */\n", style=style, version=package.VERSION)


def asset(name: str) -> str:
    """A style sheet or script of this package."""
    return (Path(__file__).parent / "assets" / name).read_text(encoding="utf-8")


def on_map(pictures: Sequence[Picture]) -> tuple[tuple[int, Picture], ...]:
    """The pictures that lie on the map, each with its place among all."""
    return tuple((n, picture) for n, picture in enumerate(pictures) if picture.bounds is not None)


def section(pictures: Sequence[Picture], view: MapView) -> str:
    """The map with its panel, hidden until its script runs, and the data that the script reads."""
    layers = _layers(pictures)
    bases = [n for n, layer in enumerate(layers) if layer[0][1].kind in _BACKGROUNDS]
    overlays = [n for n in range(len(layers)) if n not in bases]
    drawn = sorted(view.tiles, key=lambda tile: tile.state == "done")  # where tiles are left out, finished ones are
    data = {
        "layers": [_layer_data(layer) for layer in layers],
        "tiles": [_tile_data(tile) for tile in drawn[:MAX_TILES]],
        "more": len(drawn) > MAX_TILES,
        "tile_m": view.tile_m,
        "area": [_flat(ring) for ring in view.area],
        "reference_lon": view.reference_lon,
    }
    left_out = len(view.tiles) - MAX_TILES
    note = f"{view.note} {f'{left_out:,} further tiles are not drawn.' if left_out > 0 else ''}".strip()
    panel = (
        _backgrounds(layers, bases) + _overlays(layers, overlays) + _drawn(view) + _compare(layers) + _actions(layers)
    )
    return (
        '<section class="mapping"><h2>Map</h2>'
        "<noscript><p>The map needs JavaScript; the pictures below do not.</p></noscript>"
        '<div class="atlas" hidden><div class="stage"><div id="map" role="application" aria-label="Map. Arrow keys '
        'move, plus and minus zoom, Enter reads the values at the centre, space flips the comparison."></div>'
        f'{paragraph(view.label, "stamp")}<p id="right" class="tag" hidden></p></div>'
        f'<div class="panel">{panel}</div></div>'
        f'{paragraph(note, "hint")}<script type="application/json" id="map-data">{data_block(data)}</script>'
        "</section>\n"
    )


def data_block(data: Any) -> str:
    r"""JSON that nothing inside can end or break: no ``<``, no ``&``, ASCII only.

    >>> data_block("</script>")
    '"\\u003c/script\\u003e"'
    """
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def legend(picture: Picture) -> str:
    """Classes with their colours, or a ramp with its ticks."""
    if picture.ramp:
        return _ramp(picture)
    items = "".join(f'<li><i style="background:{_colour(colour, name)}"></i>{escape(name)}</li>'
                    for name, colour in picture.legend)  # fmt: skip
    return f'<ul class="legend">{items}</ul>' if items else ""


def small_png(rgba: NDArray[np.uint8]) -> bytes:
    """A PNG of at most 255 colours and a transparent one; exact where the picture has no more.

    Args:
        rgba: (row, col, 4) uint8, alpha 0 or 255.
    """
    from PIL import Image  # noqa: PLC0415

    seen = rgba[..., 3] > 0
    packed = (rgba[..., :3].astype(np.uint32) << np.array([16, 8, 0], np.uint32)).sum(axis=-1, dtype=np.uint32)
    found = np.unique(packed[seen])
    if len(found) <= PALETTE:
        index = np.searchsorted(found, packed).clip(0, PALETTE).astype(np.uint8)
        colours = np.stack([found >> 16 & 255, found >> 8 & 255, found & 255], axis=-1).astype(np.uint8)
    else:
        mixed = Image.fromarray(np.ascontiguousarray(rgba[..., :3])).quantize(PALETTE, dither=Image.Dither.NONE)
        index = np.array(mixed)
        colours = np.array(mixed.getpalette() or [], np.uint8).reshape(-1, 3)
    index[~seen] = PALETTE
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(colours)] = colours
    image = Image.fromarray(index, mode="P")
    image.putpalette(palette.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", transparency=PALETTE, optimize=True)
    return buffer.getvalue()


def _layers(pictures: Sequence[Picture]) -> list[list[tuple[int, Picture]]]:
    """Pictures by layer, in the order of their first ones: equal kind and name are zones or steps of one layer."""
    found: dict[tuple[str, str], list[tuple[int, Picture]]] = {}
    for n, picture in on_map(pictures):
        found.setdefault((picture.kind, picture.name), []).append((n, picture))
    return list(found.values())


def _layer_data(layer: list[tuple[int, Picture]]) -> dict[str, Any]:
    first = layer[0][1]
    steps = _steps(layer)
    return {
        "name": first.name,
        "kind": first.kind,
        "steps": steps,
        "pictures": [
            {
                "img": n,
                "bounds": [round(side, 2) for side in picture.bounds or ()],
                "step": steps.index(picture.step),
                "pixel_m": picture.pixel_m,
            }
            for n, picture in layer
        ],
        "classes": [[name, colour] for name, colour in first.legend] if first.kind == "class" else [],
        "ramp": [[value, colour] for value, colour in first.ramp],
        "unit": first.unit,
    }


def _steps(layer: list[tuple[int, Picture]]) -> list[str]:
    return list(dict.fromkeys(picture.step for _, picture in layer))


def _tile_data(tile: Any) -> list[Any]:
    return [tile.tile_id, tile.state, _flat(tile.ring), [list(fact) for fact in tile.facts]]


def _flat(ring: Sequence[tuple[float, float]]) -> list[float]:
    """Lon, lat, lon, lat, ... to 0.1 m: half the brackets in a page with thousands of them."""
    return [round(degrees, 6) for point in ring for degrees in point]


def _backgrounds(layers: list[list[tuple[int, Picture]]], chosen: list[int]) -> str:
    if not chosen:
        return ""
    rows = []
    for place, n in enumerate(chosen):
        first, steps = layers[n][0][1], _steps(layers[n])
        checked = " checked" if place == 0 else ""
        rows.append(
            f'<div class="layer"><label><input type="radio" name="base" value="{n}"{checked}>{escape(first.name)}'
            "</label>"
            f"{_stepper(n, first.name, steps) if len(steps) > 1 else ''}"
            f'<div class="key" hidden>{paragraph(first.caption, "hint")}</div></div>'
        )
    none = '<div class="layer"><label><input type="radio" name="base" value="">none</label></div>'
    return f"<fieldset><legend>Background</legend>{''.join(rows)}{none}</fieldset>"


def _stepper(n: int, name: str, steps: list[str]) -> str:
    return (
        f'<div class="stepper" data-steps="{n}" hidden>'
        '<button type="button" aria-label="previous dates">&#8249;</button>'
        f'<input type="range" min="0" max="{len(steps) - 1}" value="0" step="1" aria-label="Dates of {escape(name)}">'
        f'<button type="button" aria-label="next dates">&#8250;</button><output>{escape(steps[0])}</output></div>'
    )


def _overlays(layers: list[list[tuple[int, Picture]]], chosen: list[int]) -> str:
    if not chosen:
        return ""
    first_map = next((n for n in chosen if layers[n][0][1].kind == "class"), chosen[0])
    rows = []
    for n in chosen:
        first = layers[n][0][1]
        checked = " checked" if n == first_map else ""
        rows.append(
            f'<div class="layer"><label><input type="checkbox" name="over" value="{n}"{checked}>{escape(first.name)}'
            f'</label><div class="key" hidden><label class="opacity">opacity<input type="range" min="0" max="100" '
            f'value="100" name="opacity" data-layer="{n}" aria-label="Opacity of {escape(first.name)}"></label>'
            f"{legend(first)}{paragraph(first.caption, 'hint')}</div></div>"
        )
    return f"<fieldset><legend>Layers over it</legend>{''.join(rows)}</fieldset>"


def _drawn(view: MapView) -> str:
    found = {tile.state for tile in view.tiles}
    counts = {state: sum(tile.state == state for tile in view.tiles) for state in sorted(found)}
    chips = "".join(f"<span>{badge(state)} {count:,}</span>" for state, count in counts.items())
    tiles = f'<label><input type="checkbox" id="tiles" checked>tiles</label><p class="chips">{chips}</p>'
    area = '<label><input type="checkbox" id="area" checked>area asked for</label>'
    return (
        f"<fieldset><legend>Lines</legend>{tiles if view.tiles else ''}{area if view.area else ''}"
        '<label><input type="checkbox" id="graticule" checked>longitude and latitude</label></fieldset>'
    )


def _compare(layers: list[list[tuple[int, Picture]]]) -> str:
    choices = [(n, step, name) for n, layer in enumerate(layers) for step, name in enumerate(_steps(layer))]
    if len(choices) < 2:
        return ""
    options = "".join(
        f'<option value="{n} {step}">{escape(f"{layers[n][0][1].name} {name}".strip())}</option>'
        for n, step, name in choices
    )
    return (
        '<fieldset><legend>Compare</legend><label class="row">right of the line <select id="compare">'
        f'<option value="">nothing</option>{options}</select></label>'
        '<button type="button" id="flip" hidden title="or space on the map">flip</button></fieldset>'
    )


def _actions(layers: list[list[tuple[int, Picture]]]) -> str:
    read = '<button type="button" id="read">values at the centre</button>' if layers else ""
    hint = paragraph("Click into the map for coordinates, tile and values.", "hint") if layers else ""
    return f'<div class="actions"><button type="button" id="fit">whole area</button>{read}</div>{hint}'


def _ramp(picture: Picture) -> str:
    """The colours with their values, every piece as wide as the next: low values often have most of the colours."""
    last = max(len(picture.ramp) - 1, 1)
    stops = ",".join(
        f"{_colour(colour, picture.name)} {n / last * 100:.1f}%" for n, (_, colour) in enumerate(picture.ramp)
    )
    texts = [text for text, _ in picture.legend]
    if len(texts) != len(picture.ramp):
        texts = [f"{value:g} {picture.unit}".strip() for value, _ in picture.ramp]
    if len(texts) > MAX_TICKS:
        texts = [texts[0], texts[-1]]
    ticks = "".join(f"<span>{escape(text)}</span>" for text in texts)
    return f'<div class="ramp"><i style="background:linear-gradient(90deg,{stops})"></i><p>{ticks}</p></div>'


def _colour(text: str, name: str) -> str:
    if not _HEX.fullmatch(text):
        raise InvalidInputError(f"colour {text!r} of class {name!r} is not of the form #rrggbb")
    return text
