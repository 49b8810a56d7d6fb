"""QGIS styles beside GeoTIFFs: ``map.qml`` beside ``map.tif`` gives the layer names and colours when it is opened.

QGIS takes colours and nodata from a GeoTIFF, but no class names, and no colours for numbers. The styles hold the
symbology only. Form: QGIS documentation, "The QML File Format"; element names as QGIS 3.22 (the long-term release that
wrote them first in this form) saves them, which later ones read.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from pipeline.errors import InvalidInputError
from pipeline.write import durable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pipeline.write.durable import Checkpoint

VERSION = "3.22.0"
"""QGIS refuses nothing by this number; it says which form the file has."""
_HEAD = "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"


def class_style(classes: Sequence[tuple[int, str, str]]) -> str:
    """Unique values: a colour and a name per class; every other value, nodata too, is transparent.

    Args:
        classes: (value, name, ``#rrggbb``).

    Raises:
        InvalidInputError: A colour of another form.
    """
    root, renderer = _base("paletted")
    palette = ET.SubElement(renderer, "colorPalette")
    for value, name, colour in classes:
        ET.SubElement(palette, "paletteEntry", value=str(value), color=_colour(colour), alpha="255", label=name)
    return _text(root)


def value_style(stops: Sequence[tuple[float, str]], *, units: str = "", band: int = 1) -> str:
    """A ramp of colours: linear between the stops, the end colours beyond them; nodata is transparent.

    Args:
        stops: (value, ``#rrggbb``), rising.
        units: Shown behind the numbers of the legend.
        band: Band of the file.

    Raises:
        InvalidInputError: Fewer than two stops, stops that do not rise, or a colour of another form.
    """
    values = [value for value, _ in stops]
    if len(values) < 2 or any(b <= a for a, b in pairwise(values)):
        raise InvalidInputError(f"a colour ramp needs two or more rising stops, got {values}")
    low, high = f"{values[0]:.10g}", f"{values[-1]:.10g}"
    root, renderer = _base("singlebandpseudocolor", band=band)
    renderer.set("classificationMin", low)
    renderer.set("classificationMax", high)
    shader = ET.SubElement(
        ET.SubElement(renderer, "rastershader"),
        "colorrampshader",
        colorRampType="INTERPOLATED",
        classificationMode="1",
        clip="0",
        minimumValue=low,
        maximumValue=high,
        labelPrecision="4",
    )
    for value, colour in stops:
        label = f"{value:.4g} {units}".rstrip()
        ET.SubElement(shader, "item", value=f"{value:.10g}", color=_colour(colour), alpha="255", label=label)
    return _text(root)


def style_path(path: Path) -> Path:
    """Where QGIS looks for the style of a raster file: the same name with the suffix ``.qml``."""
    return path.with_suffix(".qml")


def write_style(path: Path, style: str, *, at: Checkpoint = durable.passed) -> Path:
    """Put a style beside the raster file ``path``, replacing what was there; returns its path."""
    place = style_path(path)
    durable.replace(place, style.encode(), at=at)
    return place


def _base(kind: str, *, band: int = 1) -> tuple[ET.Element, ET.Element]:
    root = ET.Element("qgis", version=VERSION, styleCategories="Symbology")
    pipe = ET.SubElement(root, "pipe")
    ET.SubElement(
        ET.SubElement(pipe, "provider"),
        "resampling",
        enabled="false",
        zoomedInResamplingMethod="nearestNeighbour",
        zoomedOutResamplingMethod="nearestNeighbour",
        maxOversampling="2",
    )
    # alphaBand -1: no band of the file is its transparency; an empty nodataColor leaves nodata transparent.
    renderer = ET.SubElement(
        pipe, "rasterrenderer", type=kind, band=str(band), opacity="1", alphaBand="-1", nodataColor=""
    )
    ET.SubElement(renderer, "rasterTransparency")
    origin = ET.SubElement(renderer, "minMaxOrigin")
    ET.SubElement(origin, "limits").text = "None"  # the limits are those of the style, not of what is on the screen
    ET.SubElement(pipe, "brightnesscontrast", brightness="0", contrast="0", gamma="1")
    ET.SubElement(pipe, "huesaturation", saturation="0", grayscaleMode="0", colorizeOn="0")
    ET.SubElement(pipe, "rasterresampler", maxOversampling="2")
    ET.SubElement(root, "blendMode").text = "0"
    return root, renderer


def _text(root: ET.Element) -> str:
    ET.indent(root)
    return _HEAD + ET.tostring(root, encoding="unicode") + "\n"


def _colour(text: str) -> str:
    if not re.fullmatch("#[0-9a-fA-F]{6}", text):
        raise InvalidInputError(f"colour {text!r} is not of the form #rrggbb")
    return text.lower()
