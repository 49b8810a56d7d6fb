"""report.html: self-contained, escaped, complete."""

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import InvalidInputError, OutputError
from pipeline.write.page import (
    MAX_ROWS,
    MapTile,
    MapView,
    PageContent,
    Picture,
    SeamSection,
    Table,
    render_page,
    write_page,
)
from pipeline.write.page_map import MAX_TILES, small_png
from pipeline.write.preview import png_bytes
from pipeline.write.seam_picture import MARGIN_PX, marked, profile_svg
from pipeline.write.seams import Score

NASTY = "</script><img src=http://evil.example/x onerror=alert(1)>\"'&<b>"
PNG = png_bytes(np.full((3, 4, 4), 200, dtype=np.uint8))
BOUNDS = (1000.0, 2000.0, 1400.0, 2300.0)
RING = ((9.0, 50.0), (9.1, 50.0), (9.1, 49.9), (9.0, 49.9))
VOID = {"meta", "img", "input", "br"}


class _Page(HTMLParser):
    """Collects tags, attributes and text; checks nesting."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in {"script", "style"}:
            self.text += data


def _data(html: str):
    return json.loads(re.search(r'<script type="application/json" id="map-data">(.*?)</script>', html, re.DOTALL)[1])


def _score(kind: str) -> Score:
    return Score(
        axis="row", kind=kind, period=6, phase=1, score=1.2, low=1.1, high=1.3, line=1.0, lines=9, segments=90,
        profile=(1.0, 1.2, 1.1, None, 1.0, 0.99), own=(0,),
    )  # fmt: skip


def _content(text: str = "plain", *, mapped: bool = False) -> PageContent:
    places = {"bounds": BOUNDS} if mapped else {}
    table = Table(title=text, columns=(text, "status"), rows=((text, "done"), (1, text)), note=text)
    return PageContent(
        title=text,
        subtitle=text,
        warnings=(text, "UNTRAINED random weights"),
        facts=((text, 1.5, text),),
        pictures=(
            Picture(name=text, png=PNG, caption=text, kind="base", **places),
            Picture(name=text, png=PNG, caption=text, legend=((text, "#00ff00"),), kind="class", **places),
            Picture(name=text, png=PNG, caption=text, kind="period", step=text, **places),
            Picture(name=text, png=PNG, caption=text, kind="period", step=f"2 {text}", **places),
            Picture(name=text, png=PNG, kind="ramp", unit=text, ramp=((0.0, "#000000"), (1.0, "#ffffff")), **places),
        ),
        view=MapView(
            tiles=(MapTile(tile_id=text, state=text, ring=RING, facts=((text, text),)),),
            tile_m=2560,
            area=(RING,),
            label=text,
            note=text,
        ),
        tiles=table,
        cost=((text, 12345, text), ("Cost", None, "USD")),
        storage=((text, 7, text),),
        estimates=((text, 2.0, 3.0, text), ("Cost", None, 1.0, "USD")),
        seams=SeamSection(
            table=table,
            picture=Picture(name=text, png=PNG, caption=text),
            profile=profile_svg(_score(text)),
            caption=text,
        ),
        tables=(table,),
        provenance=((text, text),),
        notes=(text,),
        made=text,
    )


@pytest.mark.parametrize("mapped", [False, True])
def test_every_text_is_escaped(mapped):
    plain, nasty = (_Page(render_page(_content(text, mapped=mapped))) for text in ("plain", NASTY))
    assert [tag for tag, _ in nasty.tags] == [tag for tag, _ in plain.tags]
    assert [set(attrs) for _, attrs in nasty.tags] == [set(attrs) for _, attrs in plain.tags]
    assert nasty.text.count(NASTY) == plain.text.count("plain") > 20


@pytest.mark.parametrize("mapped", [False, True])
def test_nothing_points_outside_the_file(mapped):
    html = render_page(_content("https://example.org/stac", mapped=mapped))
    for tag, attrs in _Page(html).tags:
        assert tag not in {"link", "iframe", "object", "embed", "base"}
        assert not {"href", "srcset", "action"} & set(attrs)
        assert (attrs.get("src") or "data:").startswith("data:")
    # The library asks old browsers whether they know VML, in words that load nothing.
    html = html.replace('"url(#default#VML)"', "")
    assert not re.search(r"url\(|@import|import\(|fetch\(|XMLHttp|sourceMappingURL", html)


@pytest.mark.parametrize("mapped", [False, True])
def test_a_policy_allows_the_scripts_of_the_page_and_nothing_else(mapped):
    html = render_page(_content(NASTY, mapped=mapped))
    policy = next(attrs["content"] for tag, attrs in _Page(html).tags if "http-equiv" in attrs)
    assert policy.startswith("default-src 'none'; img-src data:;")
    allowed = next(part for part in policy.split("; ") if part.startswith("script-src")).split()[1:]
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert allowed == [f"'sha256-{digest}'" for digest in digests]
    assert len(allowed) == (3 if mapped else 1)


def test_the_scripts_hold_no_text_of_the_run():
    pages = [render_page(_content(text, mapped=True)) for text in (NASTY, "plain")]
    assert len({tuple(re.findall(r"<script>.*?</script>", html, re.DOTALL)) for html in pages}) == 1


@pytest.mark.parametrize("text", [NASTY, "a\u2028b\u2029c", "]]>--><!--", "\x00\\", "Zürich ✓ 𝄞"])
def test_the_data_of_the_map_come_back_whole_whatever_they_say(text):
    data = _data(render_page(_content(text, mapped=True)))
    assert [layer["name"] for layer in data["layers"]] == [text] * 4
    assert data["layers"][1]["classes"] == [[text, "#00ff00"]]
    assert data["layers"][2]["steps"] == [text, f"2 {text}"]
    assert data["tiles"][0][:2] == [text, text]
    assert data["tiles"][0][3] == [[text, text]]


def test_the_block_of_data_is_ascii_without_any_markup():
    block = re.search(r'id="map-data">(.*?)</script>', render_page(_content(NASTY + "\u2028", mapped=True)), re.DOTALL)
    assert block[1].isascii()
    assert not set("<>&") & set(block[1])


def test_pictures_of_one_kind_and_name_are_one_layer_of_several_zones():
    pictures = tuple(Picture(name="Embeddings", png=PNG, kind="base", bounds=(x, 0.0, x + 1, 1.0)) for x in (0.0, 1.0))
    data = _data(render_page(PageContent(title="t", pictures=pictures)))
    assert [[picture["img"] for picture in layer["pictures"]] for layer in data["layers"]] == [[0, 1]]


def test_a_map_of_one_layer_offers_no_comparison_and_one_of_two_does():
    def page(count):
        pictures = tuple(Picture(name=f"p{n}", png=PNG, kind="base", bounds=BOUNDS) for n in range(count))
        return _Page(render_page(PageContent(title="t", pictures=pictures)))

    assert [any(attrs.get("id") == "compare" for _, attrs in page(count).tags) for count in (1, 2)] == [False, True]


def test_no_more_tiles_are_drawn_than_a_browser_bears_and_the_page_says_so():
    states = ["done"] * (MAX_TILES + 11) + ["failed"]
    tiles = tuple(MapTile(tile_id=f"z31_r0_c{n}", state=state, ring=RING) for n, state in enumerate(states))
    picture = Picture(name="a", png=PNG, kind="base", bounds=BOUNDS)
    html = render_page(PageContent(title="t", pictures=(picture,), view=MapView(tiles=tiles, tile_m=2560)))
    assert len(_data(html)["tiles"]) == MAX_TILES
    assert [tile[1] for tile in _data(html)["tiles"]].count("failed") == 1
    assert "12 further tiles are not drawn" in html


def test_the_library_comes_with_its_licence_and_only_where_there_is_a_map():
    with_map, without = (render_page(_content(mapped=mapped)) for mapped in (True, False))
    for words in ("Leaflet 1.9", "Agafonkin", "Redistributions in binary form must", "BSD 2-Clause License"):
        assert words in with_map
    assert "Leaflet" not in without


def test_tiles_of_the_table_lead_to_the_map_where_there_is_one():
    table = Table(title="Tiles", columns=("tile", "state"), rows=(("z31_r1_c1", "done"),))
    picture = Picture(name="a", png=PNG, kind="base", bounds=BOUNDS)
    linked = [
        [attrs["data-tile"] for _, attrs in _Page(render_page(content)).tags if "data-tile" in attrs]
        for content in (PageContent(title="t", tiles=table), PageContent(title="t", tiles=table, pictures=(picture,)))
    ]
    assert linked == [[], ["z31_r1_c1"]]


@pytest.mark.parametrize("colours", [3, 255, 256, 3000])
def test_a_small_png_keeps_nodata_and_exact_colours_while_there_are_few(colours):
    rng = np.random.default_rng(1)
    number = np.arange(64 * 64).reshape(64, 64) % colours
    rgba = np.stack([number % 251, number // 251 * 20, number % 7 * 30, np.full((64, 64), 255)], -1).astype(np.uint8)
    rgba[rng.random((64, 64)) < 0.2] = 0
    png = small_png(rgba)
    with Image.open(io.BytesIO(png)) as opened:
        back = np.asarray(opened.convert("RGBA"))
    np.testing.assert_array_equal(back[..., 3], rgba[..., 3])
    off = np.abs(back.astype(int) - rgba)[rgba[..., 3] > 0].mean()
    assert off == 0 if colours <= 255 else 0 < off < 12


def test_pictures_are_embedded_once_each_and_whole():
    html = render_page(_content())
    found = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", html)
    assert [base64.b64decode(f) for f in found] == [PNG] * 6


def test_warnings_stand_before_everything_else():
    html = render_page(_content())
    assert html.index('role="alert"') < html.index("<h2>Pictures")
    assert "UNTRAINED random weights" in _Page(html).text


def test_a_page_without_content_has_no_empty_parts():
    page = _Page(render_page(PageContent(title="empty")))
    assert not {"section", "table", "figure", "aside"} & {tag for tag, _ in page.tags}


def test_the_line_is_marked_at_the_margin_and_not_in_the_picture():
    picture = np.full((60, 80, 4), 90, np.uint8)
    inner = (slice(MARGIN_PX, -MARGIN_PX), slice(MARGIN_PX, -MARGIN_PX))
    for place in ({"row": 20}, {"col": 33}):
        framed = marked(picture, **place)
        np.testing.assert_array_equal(framed[inner], picture)
        framed[inner] = 0
        rows, cols = np.nonzero(framed[..., 3])
        where, line = (rows, 20) if "row" in place else (cols, 33)
        assert where.mean() == MARGIN_PX + line - 0.5
        assert {c < MARGIN_PX for c in (cols if "row" in place else rows)} == {True, False}


def test_a_profile_shows_its_worst_phase_and_leaves_gaps_open():
    svg = profile_svg(_score("window"), token_px=4, limit=1.15)
    assert svg.count('class="worst"') == svg.count('class="limit"') == 1
    assert svg.count("<polyline") == 2
    assert svg.count('class="dot"') == 5
    assert "period of 24 px" in svg


def test_tile_states_are_counted_and_marked():
    rows = (("z31_r1_c1", "done"), ("z31_r1_c2", "failed"), ("z31_r1_c3", "done"))
    tiles = Table(title="Tiles", columns=("tile", "status"), rows=rows)
    page = _Page(render_page(PageContent(title="t", tiles=tiles)))
    assert "done 2failed 1" in page.text
    assert [a["class"] for tag, a in page.tags if (a.get("class") or "").startswith("badge")].count("badge bad") == 2


def test_long_tables_are_cut_and_say_so():
    rows = tuple((f"tile {n}", "done") for n in range(MAX_ROWS + 1234))
    html = render_page(PageContent(title="t", tiles=Table(title="Tiles", columns=("tile", "status"), rows=rows)))
    assert html.count("<tr>") == MAX_ROWS + 1
    assert "1,234 further rows are not shown" in html
    assert f"done</span> {MAX_ROWS + 1234:,}" in html


def test_estimates_show_the_ratio_where_both_are_known():
    page = _Page(render_page(_content()))
    assert "1.50" in page.text
    assert "unknown" in page.text


@pytest.mark.parametrize(
    ("value", "shown"), [(1234567, "1,234,567"), (0.01234567, "0.01235"), (9999.96, "10,000"), (None, "unknown")]
)
def test_numbers_are_readable(value, shown):
    page = _Page(render_page(PageContent(title="t", cost=(("what", value, "unit"),))))
    assert f"what{shown}unit" in page.text


def test_pictures_and_colours_of_another_form_are_refused():
    with pytest.raises(InvalidInputError, match="not a PNG"):
        render_page(PageContent(title="t", pictures=(Picture(name="a", png=b"GIF89a"),)))
    legend = (("a", "red;background:url(x)"),)
    with pytest.raises(InvalidInputError, match="#rrggbb"):
        render_page(PageContent(title="t", pictures=(Picture(name="a", png=PNG, legend=legend),)))


def test_the_page_is_written_whole_and_stays_small(tmp_path):
    path = tmp_path / "sub" / "report.html"
    write_page(str(path), _content("Zürich ✓"))
    assert path.read_text(encoding="utf-8") == render_page(_content("Zürich ✓"))
    assert path.stat().st_size < 25_000
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_a_place_that_cannot_be_written_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        write_page(str(tmp_path / "file" / "report.html"), _content())
