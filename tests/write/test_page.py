"""report.html: self-contained, escaped, complete."""

import base64
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from pipeline.errors import InvalidInputError, OutputError
from pipeline.write.page import MAX_ROWS, PageContent, Picture, SeamSection, Table, render_page, write_page
from pipeline.write.preview import png_bytes
from pipeline.write.seam_picture import MARGIN_PX, marked, profile_svg
from pipeline.write.seams import Score

NASTY = "</script><img src=http://evil.example/x onerror=alert(1)>\"'&<b>"
PNG = png_bytes(np.full((3, 4, 4), 200, dtype=np.uint8))
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


def _score(kind: str) -> Score:
    return Score(
        axis="row", kind=kind, period=6, phase=1, score=1.2, low=1.1, high=1.3, line=1.0, lines=9, segments=90,
        profile=(1.0, 1.2, 1.1, None, 1.0, 0.99), own=(0,),
    )  # fmt: skip


def _content(text: str = "plain") -> PageContent:
    table = Table(title=text, columns=(text, "status"), rows=((text, "done"), (1, text)), note=text)
    return PageContent(
        title=text,
        subtitle=text,
        warnings=(text, "UNTRAINED random weights"),
        facts=((text, 1.5, text),),
        pictures=(
            Picture(name=text, png=PNG, caption=text),
            Picture(name=text, png=PNG, caption=text, legend=((text, "#00ff00"),)),
        ),
        tiles=table,
        cost=((text, 12345, text), ("Cost", None, "USD")),
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


def test_every_text_is_escaped():
    plain, nasty = _Page(render_page(_content("plain"))), _Page(render_page(_content(NASTY)))
    assert [tag for tag, _ in nasty.tags] == [tag for tag, _ in plain.tags]
    assert [set(attrs) for _, attrs in nasty.tags] == [set(attrs) for _, attrs in plain.tags]
    assert nasty.text.count(NASTY) == plain.text.count("plain") > 20


def test_nothing_points_outside_the_file():
    html = render_page(_content("https://example.org/stac"))
    for tag, attrs in _Page(html).tags:
        assert tag not in {"link", "iframe", "object", "embed", "base"}
        assert not {"href", "srcset", "action"} & set(attrs)
        assert (attrs.get("src") or "data:").startswith("data:")
    assert not re.search(r"url\(|@import|import\(|fetch\(|XMLHttp", html)


def test_a_policy_forbids_outside_resources():
    policy = next(attrs["content"] for tag, attrs in _Page(render_page(_content())).tags if "http-equiv" in attrs)
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_the_script_holds_no_text_of_the_run():
    assert re.findall(r"<script>.*?</script>", render_page(_content(NASTY)), re.DOTALL) == re.findall(
        r"<script>.*?</script>", render_page(_content()), re.DOTALL
    )


def test_pictures_are_embedded_once_each_and_whole():
    html = render_page(_content())
    found = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", html)
    assert [base64.b64decode(f) for f in found] == [PNG, PNG, PNG]


def test_warnings_stand_before_everything_else():
    html = render_page(_content())
    assert html.index('role="alert"') < html.index("<h2>Pictures")
    assert "UNTRAINED random weights" in _Page(html).text


def test_a_page_without_content_has_no_empty_parts():
    page = _Page(render_page(PageContent(title="empty")))
    assert not {"section", "table", "figure", "aside"} & {tag for tag, _ in page.tags}


def test_the_viewer_compares_pictures_of_the_area_only():
    html = render_page(_content())
    assert "querySelectorAll('.figures img')" in html
    assert html.index('class="seam"') > html.index('class="figures"')


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


def test_one_picture_needs_no_viewer():
    content = PageContent(title="one", pictures=(Picture(name="a", png=PNG),))
    assert not any(attrs.get("class") == "viewer" for _, attrs in _Page(render_page(content)).tags)


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
