"""report.html in a browser, from ``file://``: it works, shows what it should, and asks for nothing else."""

import html
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pyproj import Transformer

from pipeline.run import ground, page_content, seam_report
from pipeline.types import canonical_json
from pipeline.write import geotiff, page
from tests.run.sampled import part, request_of, run_request

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
NASTY = "crops</script><img src=x onerror=alert(1)>\u2028\"'&"
CLASSES = ((0, "bare", "#c0a080"), (1, NASTY, "#2060e0"))
DRIVER = """
const $ = (q) => document.querySelector(q), all = (q) => [...document.querySelectorAll(q)];
const seen = {};
const note = (name, value) => { seen[name] = value; };
const pick = (field, value) => { field.value = value; field.dispatchEvent(new Event('input', {bubbles: true})); };
addEventListener('load', () => setTimeout(() => {
  note('start', $('.leaflet-base-pane').childElementCount + ' ' + $('.leaflet-over-pane').childElementCount);
  all('[name=over]')[0].click();
  note('off', $('.leaflet-over-pane').childElementCount);
  all('[name=over]')[0].click();
  pick($('[name=opacity]'), 40);
  note('opacity', $('.leaflet-over-pane img').style.opacity);
  const series = $('.stepper').closest('.layer').querySelector('[name=base]');
  series.click();
  const first = $('.leaflet-base-pane img').alt;
  $('.stepper button:last-of-type').click();
  note('steps', first + ' | ' + $('.leaflet-base-pane img').alt + ' | ' + $('.stepper output').textContent);
  note('last', $('.stepper button:last-of-type').disabled);
  pick($('#compare'), $('#compare').options[1].value);
  note('right', $('.leaflet-right-pane').querySelectorAll('img').length + ' ' + $('#divider').hidden);
  const clip = $('.leaflet-right-pane').style.clipPath;
  $('#divider').dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowLeft', bubbles: true}));
  note('moved', clip !== $('.leaflet-right-pane').style.clipPath);
  note('now', $('#divider').getAttribute('aria-valuenow'));
  $('#flip').click();
  note('flipped', $('#divider').getAttribute('aria-valuenow'));
  $('#tiles').click();
  note('tiles', all('path.tile').length);
  const names = () => all('[data-tile]').map((button) => button.dataset.tile).join();
  $('th .sort').click();
  const up = names();
  $('th .sort').click();
  note('sorted', up.split(',').reverse().join() === names() && up !== names());
  $('[data-tile]').click();
  document.documentElement.dataset.seen = JSON.stringify(seen);
}, 300));
"""


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is on PATH")

    def call(folder, address, *options):
        command = [found, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                   f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=3000", "--enable-logging=stderr",
                   *options, address]  # fmt: skip
        done = subprocess.run(command, capture_output=True, timeout=120, check=False)
        told = done.stderr.decode(errors="replace")
        return done.stdout.decode(), [line for line in told.splitlines() if "CONSOLE" in line]

    return call


@pytest.fixture(scope="module")
def report(sample, tmp_path_factory):
    """(path of report.html, box of the map, its classes) of a run of two periods, with a class map beside."""
    folder = tmp_path_factory.mktemp("report") / "out"
    settings = request_of(sample, folder, bbox=part(sample.bbox, 0.3, 0.3, 0.62, 0.45), end="2024-05-31")
    plan, outcome = run_request(settings, pictures=True)
    (extent,) = ground.extents(plan)
    values = np.zeros(extent.shape, np.uint8)
    values[:, extent.width // 2 :] = 1
    cog = folder / "maps" / f"crops_utm{extent.zone}_r0_c0.tif"
    cog.parent.mkdir(exist_ok=True)
    geotiff.write_cog(
        cog,
        values,
        box=extent,
        colours=tuple((value, colour) for value, _, colour in CLASSES),
        tags=((geotiff.CLASSES_TAG, canonical_json(CLASSES)),),
    )
    made = replace(outcome.published, maps=(str(cog),))
    content = page_content.report_content(plan, made, seam_report.measured(plan, ground.committed(plan)))
    page.write_page(made.page, content)
    return Path(made.page), extent, content


def address(path, fragment=""):
    return f"{path.as_uri()}{fragment}"


def rows_of(dom):
    """(label, text) of the open popup."""
    popup = re.search(r'class="leaflet-popup-content".*?</dl>', dom, re.DOTALL)[0]
    texts = [html.unescape(re.sub(r"<[^>]*>", "", cell)) for cell in re.findall(r"<d[td]>(.*?)</d[td]>", popup)]
    return dict(zip(texts[::2], texts[1::2], strict=True))


@pytest.fixture(scope="module")
def opened(browser, report, tmp_path_factory):
    """(dom, console, place) of the page opened at a place in the east of the map."""
    path, extent, _ = report
    west, _, east, north = extent.bounds_m
    x, y = west + 0.8 * (east - west), north - 1234.5
    lon, lat = Transformer.from_crs(extent.epsg, 4326, always_xy=True).transform(x, y)
    dom, console = browser(tmp_path_factory.mktemp("dom"), address(path, f"#{lon:.7f},{lat:.7f}"), "--dump-dom")
    return dom, console, (lon, lat, x, y)


def test_the_page_starts_without_an_error(opened):
    dom, console, _ = opened
    assert console == []
    top = re.search(r"<html[^>]*>", dom)[0]
    assert 'data-ready="map"' in top
    assert 'data-errors="0"' in top
    assert 'data-overlays="2"' in top


def test_the_map_shows_pictures_tiles_legend_and_label(opened, report):
    dom, _, _ = opened
    _, _, content = report
    assert len(re.findall(r'<path class="tile done', dom)) == len(content.view.tiles) == 2
    assert len(re.findall(r'<path class="area', dom)) == 1
    assert "leaflet-control-scale-line" in dom
    assert re.search(r"meridian top[^>]*>\s*<span>[\d.]+°E", dom)
    assert 'class="stamp">UNTRAINED' in dom
    assert [picture.step for picture in content.pictures if picture.kind == "period"]
    panel = re.search(r'<div class="panel">.*?<footer', dom, re.DOTALL)[0]
    assert NASTY in html.unescape(panel)
    assert "Periods seen" in panel


def test_a_click_tells_coordinates_tile_and_class(opened, report):
    dom, _, (lon, lat, x, y) = opened
    rows = rows_of(dom)
    assert rows["lon, lat"] == f"{lon:.6f}, {lat:.6f}"
    told = [float(part) for part in rows[f"EPSG:{report[1].epsg}"].split(", ")]
    np.testing.assert_allclose(told, [x, y], atol=0.11)
    side = report[2].view.tile_m
    assert rows["tile"] == f"z{report[1].zone}_r{int(-y // side)}_c{int(x // side)}, done"
    assert rows["Map crops"] == NASTY
    assert re.fullmatch(r"about [12] of 2 periods", rows["Periods seen"])


def test_nothing_of_a_hostile_name_became_markup(opened):
    assert not re.search(r"<img src=\"?x", opened[0])


def test_a_script_that_is_not_ours_is_not_run(browser, report, tmp_path):
    text = report[0].read_text(encoding="utf-8")
    bad = "<script>document.documentElement.dataset.bad = 1</script></body>"
    (tmp_path / "r.html").write_text(text.replace("</body>", bad), encoding="utf-8")
    dom, console = browser(tmp_path, address(tmp_path / "r.html"), "--dump-dom")
    assert "data-bad" not in dom
    assert len(console) == 1
    assert "Content Security Policy" in console[0]


def test_every_control_does_what_it_says(browser, report, tmp_path):
    text = report[0].read_text(encoding="utf-8")
    free = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    driven = free.replace("</body>", f"<script>{DRIVER}</script></body>")
    (tmp_path / "r.html").write_text(driven, encoding="utf-8")
    dom, console = browser(tmp_path, address(tmp_path / "r.html"), "--dump-dom")
    assert console == []
    seen = json.loads(html.unescape(re.search(r'data-seen="([^"]*)"', dom)[1]))
    assert (seen["start"], seen["off"], seen["opacity"]) == ("1 1", 0, "0.4")
    steps = [f"{one}" for one in dict.fromkeys(p.step for p in report[2].pictures if p.kind == "period")]
    assert seen["steps"] == f"True colour {steps[0]} | True colour {steps[1]} | {steps[1]}"
    assert seen["last"] is True
    assert (seen["right"], seen["moved"], seen["now"], seen["flipped"]) == ("1 false", True, "48", "100")
    assert (seen["tiles"], seen["sorted"]) == (0, True)


@pytest.mark.parametrize("width", [1300, 420])
def test_a_picture_of_the_page_shows_the_map(browser, report, tmp_path, width):
    shot = tmp_path / "shot.png"
    browser(tmp_path, address(report[0]), f"--screenshot={shot}", f"--window-size={width},1500")
    with Image.open(io.BytesIO(shot.read_bytes())) as opened:
        pixels = np.asarray(opened.convert("RGB")).reshape(-1, 3)
    for colour in ((0xC0, 0xA0, 0x80), (0x20, 0x60, 0xE0)):
        assert (pixels == colour).all(axis=1).mean() > 0.02
    assert len(np.unique(pixels[::7], axis=0)) > 50


def test_the_page_of_a_small_run_stays_small(report):
    assert report[0].stat().st_size < 3_000_000
