"""The page of ``serve``: Leaflet with a list of layers, opacity, legend and the values at a click.

Everything comes from the server itself; names and values are put in as text, never as HTML.
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>earthpress</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="leaflet.css">
<link rel="stylesheet" href="page.css">
</head>
<body>
<div id="map" role="application" aria-label="Map"></div>
<aside id="panel" aria-label="Layers">
<h1>earthpress</h1>
<p id="warning" role="note" hidden></p>
<div id="layers"></div>
<p class="hint">Click the map for the values of the layers shown.</p>
</aside>
<script src="leaflet.js"></script>
<script src="page.js"></script>
</body>
</html>
"""

STYLE = """
:root { --ink: #1c2430; --muted: #5a6676; --line: #d9dee6; --paper: #ffffff; --ground: #eef1f5; --accent: #1f5fbf; }
* { box-sizing: border-box; }
html, body { height: 100%; margin: 0; font: 14px/1.4 system-ui, sans-serif; color: var(--ink); }
body { display: flex; }
#map { flex: 1; background: var(--ground); }
#map .leaflet-tile { image-rendering: pixelated; }
#panel { width: 330px; overflow-y: auto; padding: 16px; border-left: 1px solid var(--line); background: var(--paper); }
h1 { font-size: 18px; margin: 0 0 10px; }
#warning { background: #b3261e; color: #fff; padding: 8px 10px; border-radius: 6px; margin: 0 0 12px; }
#warning { font-size: 12.5px; }
.hint { color: var(--muted); margin: 12px 0 0; }
.layer { border: 1px solid var(--line); border-radius: 8px; padding: 8px 10px; margin-bottom: 8px; }
.layer.on { border-color: var(--accent); }
.layer label { display: flex; gap: 8px; align-items: baseline; cursor: pointer; }
.layer .name { font-weight: 600; overflow-wrap: anywhere; }
.layer .title { color: var(--muted); font-size: 12.5px; display: block; font-weight: 400; }
.more { display: none; margin-top: 6px; }
.layer.on .more { display: block; }
.more input[type=range] { width: 100%; }
.legend { display: grid; grid-template-columns: repeat(auto-fill, minmax(120px, 1fr)); gap: 3px 10px; }
.legend { font-size: 12.5px; }
.legend span { display: flex; gap: 6px; align-items: center; }
.legend i { width: 14px; height: 14px; border: 1px solid #8a94a3; flex: none; }
.values { max-height: 260px; overflow-y: auto; min-width: 220px; }
.values h2 { font-size: 13px; margin: 8px 0 2px; }
.values p { margin: 0; overflow-wrap: anywhere; }
.values .where { color: var(--muted); }
@media (max-width: 700px) {
  body { flex-direction: column; }
  #panel { width: auto; height: 42%; border-left: 0; border-top: 1px solid var(--line); }
}
"""

SCRIPT = """'use strict';
const map = L.map('map', { zoomControl: true, maxZoom: 19, attributionControl: false });
L.control.scale({ imperial: false }).addTo(map);
const shown = new Map();

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function row(layer, on) {
  const b = layer.bounds;
  const tiles = L.tileLayer(encodeURIComponent(layer.name) + '/{z}/{x}/{y}.png', {
    minZoom: layer.minzoom, maxZoom: 19, maxNativeZoom: layer.maxzoom,
    bounds: [[b[1], b[0]], [b[3], b[2]]],
  });
  const box = element('div', 'layer');
  const label = element('label');
  const check = element('input');
  check.type = 'checkbox';
  check.dataset.layer = layer.name;
  const words = element('span', 'name', layer.name);
  words.append(element('span', 'title', layer.description));
  label.append(check, words);
  const more = element('div', 'more');
  const slider = element('input');
  slider.type = 'range';
  slider.min = 0; slider.max = 100; slider.value = 100;
  slider.setAttribute('aria-label', 'Opacity of ' + layer.name);
  slider.addEventListener('input', () => tiles.setOpacity(slider.value / 100));
  more.append(slider);
  const legend = element('div', 'legend');
  for (const entry of layer.legend) {
    const item = element('span');
    const patch = element('i');
    patch.style.background = entry.colour;
    item.append(patch, document.createTextNode(entry.text));
    legend.append(item);
  }
  more.append(legend);
  box.append(label, more);
  const toggle = () => {
    box.classList.toggle('on', check.checked);
    if (check.checked) { shown.set(layer.name, tiles); tiles.addTo(map); tiles.bringToFront(); }
    else { shown.delete(layer.name); tiles.remove(); }
  };
  check.addEventListener('change', toggle);
  check.checked = on;
  if (on) toggle();
  return box;
}

function sentence(value) {
  if (Array.isArray(value)) {
    return value.length + ' numbers: ' + value.slice(0, 12).join(', ') + (value.length > 12 ? ', ...' : '');
  }
  if (value !== null && typeof value === 'object') {
    return Object.entries(value).map(([key, inner]) => key + ' ' + sentence(inner)).join(', ');
  }
  return value === null ? 'unknown' : String(value);
}

async function values(event) {
  const at = event.latlng.wrap();
  const content = element('div', 'values');
  content.append(element('p', 'where', at.lng.toFixed(6) + ', ' + at.lat.toFixed(6)));
  const popup = L.popup({ maxWidth: 340 }).setLatLng(event.latlng).setContent(content).openOn(map);
  for (const name of shown.keys()) {
    content.append(element('h2', '', name));
    const line = element('p', '', '...');
    content.append(line);
    try {
      const got = await fetch(encodeURIComponent(name) + '/point?lon=' + at.lng + '&lat=' + at.lat);
      const told = await got.json();
      const found = Object.entries(told.found || {});
      line.textContent = told.error || (found.length
        ? found.map(([key, value]) => key + ': ' + sentence(value)).join('; ') : 'nothing here');
    } catch (error) {
      line.textContent = 'the server does not answer';
    }
    popup.update();
  }
}

async function start() {
  const layers = await (await fetch('layers.json')).json();
  const list = document.getElementById('layers');
  const warnings = [...new Set(layers.map((layer) => layer.warning).filter((text) => text))];
  if (warnings.length) {
    const place = document.getElementById('warning');
    place.textContent = warnings.join(' ');
    place.hidden = false;
  }
  const west = Math.min(...layers.map((l) => l.bounds[0])), south = Math.min(...layers.map((l) => l.bounds[1]));
  const east = Math.max(...layers.map((l) => l.bounds[2])), north = Math.max(...layers.map((l) => l.bounds[3]));
  map.fitBounds([[south, west], [north, east]], { padding: [10, 10] });
  layers.forEach((layer, n) => list.append(row(layer, n === 0)));
  map.on('click', values);
  document.body.dataset.ready = 'true';
}

start();
"""
