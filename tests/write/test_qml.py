"""QGIS styles: well-formed, with the names and colours of the classes, nodata transparent."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from pipeline.errors import InvalidInputError
from pipeline.write import qml

CLASSES = ((0, "bare soil", "#884400"), (1, 'maize & "more" <b>', "#FFEE00"), (7, "eau é", "#0000ff"))


def renderer_of(text):
    root = ET.fromstring(text)
    assert root.tag == "qgis"
    assert [part.tag for part in root.find("pipe")] == [
        "provider", "rasterrenderer", "brightnesscontrast", "huesaturation", "rasterresampler",
    ]  # fmt: skip
    return root, root.find("pipe/rasterrenderer")


def test_a_class_style_holds_every_class_and_no_other_value():
    _, renderer = renderer_of(qml.class_style(CLASSES))
    assert (renderer.get("type"), renderer.get("band")) == ("paletted", "1")
    entries = [
        (int(e.get("value")), e.get("label"), e.get("color")) for e in renderer.findall("colorPalette/paletteEntry")
    ]
    assert entries == [(value, name, colour.lower()) for value, name, colour in CLASSES]
    assert {e.get("alpha") for e in renderer.iter("paletteEntry")} == {"255"}


@pytest.mark.parametrize("text", [qml.class_style(CLASSES), qml.value_style([(0, "#000000"), (1, "#ffffff")])])
def test_nodata_is_transparent_and_the_version_is_said(text):
    root, renderer = renderer_of(text)
    assert root.get("version").count(".") == 2
    assert text.startswith("<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n")
    assert (renderer.get("nodataColor"), renderer.get("alphaBand"), renderer.get("opacity")) == ("", "-1", "1")
    assert len(renderer.find("rasterTransparency")) == 0


def test_a_value_style_is_a_linear_ramp_with_units():
    _, renderer = renderer_of(
        qml.value_style([(-1.5, "#440154"), (2, "#21918c"), (1e5, "#fde725")], units="t/ha", band=2)
    )
    shader = renderer.find("rastershader/colorrampshader")
    assert (renderer.get("type"), renderer.get("band")) == ("singlebandpseudocolor", "2")
    assert shader.get("colorRampType") == "INTERPOLATED"
    assert shader.get("clip") == "0"  # beyond the ends the end colours
    assert [(float(i.get("value")), i.get("color"), i.get("label")) for i in shader] == [
        (-1.5, "#440154", "-1.5 t/ha"), (2, "#21918c", "2 t/ha"), (1e5, "#fde725", "1e+05 t/ha"),
    ]  # fmt: skip
    for where in (renderer.get("classificationMin"), shader.get("minimumValue")):
        assert float(where) == -1.5
    for where in (renderer.get("classificationMax"), shader.get("maximumValue")):
        assert float(where) == 1e5


def test_a_style_lies_where_qgis_looks_for_it(tmp_path):
    made = qml.write_style(tmp_path / "crops_utm31_r1_c2.tif", qml.class_style(CLASSES))
    assert made == tmp_path / "crops_utm31_r1_c2.qml"
    assert made.read_text(encoding="utf-8") == qml.class_style(CLASSES)


@pytest.mark.parametrize(
    "stops", [[], [(1, "#000000")], [(1, "#000000"), (1, "#ffffff")], [(0, "red"), (1, "#ffffff")]]
)
def test_a_ramp_that_is_none_is_refused(stops):
    with pytest.raises(InvalidInputError, match=r"rising stops|#rrggbb"):
        qml.value_style(stops)
