// The map of the report. Reads #map-data and the pictures of the figures; makes no markup from texts.
(() => {
  'use strict';
  const root = document.documentElement;
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($('map-data').textContent);
  const images = [...document.querySelectorAll('.figures img')];
  const panel = document.querySelector('.panel');
  const fields = (name) => [...panel.querySelectorAll(`input[name="${name}"]`)];
  const RADIUS = 6378137;

  // The pictures are hidden figures otherwise: the page is complete without this script.
  document.querySelector('.atlas').hidden = false;

  const map = L.map('map', {
    attributionControl: false, zoomSnap: 0.25, zoomDelta: 1, wheelPxPerZoomLevel: 90, maxZoom: 22,
    maxBoundsViscosity: 0.6,
  });
  for (const [name, z] of [['base', 300], ['over', 350], ['right', 400], ['lines', 450], ['tiles', 460], ['divider', 500]]) {
    map.createPane(name).style.zIndex = z;
  }
  map.getPane('lines').style.pointerEvents = 'none';
  L.control.scale({imperial: false}).addTo(map);

  // ---- places -------------------------------------------------------------------------------------------------
  const degrees = (radians) => radians * 180 / Math.PI;
  const radians = (angle) => angle * Math.PI / 180;
  const wrap = (lon) => ((lon + 180) % 360 + 360) % 360 - 180;
  const toMetres = ({lat, lng}) => [RADIUS * radians(lng), RADIUS * Math.asinh(Math.tan(radians(lat)))];
  const toLatLng = (x, y) => [degrees(Math.atan(Math.sinh(y / RADIUS))), degrees(x / RADIUS)];
  const rectangle = ([west, south, east, north]) => L.latLngBounds(toLatLng(west, south), toLatLng(east, north));
  const pairs = (flat) => flat.flatMap((lon, n) => (n % 2 ? [] : [[flat[n + 1], lon]]));

  // Transverse Mercator after Krueger to the fourth order in n: below a millimetre inside a zone.
  function utm(lon, lat, zone) {
    const n = 1 / (2 * 298.257223563 - 1);
    const a = RADIUS / (1 + n) * (1 + n ** 2 / 4 + n ** 4 / 64);
    const alpha = [
      n / 2 - 2 * n ** 2 / 3 + 5 * n ** 3 / 16 + 41 * n ** 4 / 180, 13 * n ** 2 / 48 - 3 * n ** 3 / 5 + 557 * n ** 4 / 1440,
      61 * n ** 3 / 240 - 103 * n ** 4 / 140, 49561 * n ** 4 / 161280,
    ];
    const phi = radians(lat), away = radians(wrap(lon - (6 * zone - 183)));
    const e = 2 * Math.sqrt(n) / (1 + n);
    const t = Math.sinh(Math.atanh(Math.sin(phi)) - e * Math.atanh(e * Math.sin(phi)));
    const xi = Math.atan2(t, Math.cos(away)), eta = Math.atanh(Math.sin(away) / Math.hypot(1, t));
    let east = eta, north = xi;
    alpha.forEach((share, k) => {
      east += share * Math.cos(2 * (k + 1) * xi) * Math.sinh(2 * (k + 1) * eta);
      north += share * Math.sin(2 * (k + 1) * xi) * Math.cosh(2 * (k + 1) * eta);
    });
    return [500000 + 0.9996 * a * east, 0.9996 * a * north];
  }

  // ---- layers -------------------------------------------------------------------------------------------------
  const frame = L.latLngBounds([]);
  for (const layer of data.layers) for (const picture of layer.pictures) frame.extend(rectangle(picture.bounds));
  for (const ring of data.area) frame.extend(L.latLngBounds(pairs(ring)));
  for (const [, , ring] of data.tiles) frame.extend(L.latLngBounds(pairs(ring)));

  const made = new Map();
  function group(n, step, pane) {
    const key = `${n} ${step} ${pane}`;
    if (!made.has(key)) {
      const shown = data.layers[n].pictures.filter((picture) => picture.step === step);
      made.set(key, L.layerGroup(shown.map((picture) => L.imageOverlay(
        images[picture.img].src, rectangle(picture.bounds), {pane, alt: images[picture.img].alt, className: 'sheet'},
      ))));
    }
    return made.get(key);
  }
  const steps = data.layers.map(() => 0);
  let shown = new Set();

  function draw() {
    const wanted = new Set();
    const base = fields('base').find((field) => field.checked);
    if (base && base.value !== '') wanted.add(group(Number(base.value), steps[base.value], 'base'));
    for (const field of fields('over')) {
      if (!field.checked) continue;
      const layer = group(Number(field.value), 0, 'over');
      const opacity = panel.querySelector(`[data-layer="${field.value}"]`).value / 100;
      wanted.add(layer.eachLayer((image) => image.setOpacity(opacity)));
    }
    for (const layer of shown) if (!wanted.has(layer)) layer.remove();
    for (const layer of wanted) layer.addTo(map);
    shown = wanted;
    for (const field of [...fields('base'), ...fields('over')]) {
      const row = field.closest('.layer');
      for (const part of row.querySelectorAll('.key, .stepper')) part.hidden = !field.checked;
    }
    root.dataset.overlays = String(map.getPane('base').childElementCount + map.getPane('over').childElementCount);
  }
  panel.addEventListener('input', draw);

  for (const stepper of panel.querySelectorAll('.stepper')) {
    const n = Number(stepper.dataset.steps);
    const [before, after] = stepper.querySelectorAll('button');
    const slider = stepper.querySelector('input'), output = stepper.querySelector('output');
    const go = (to) => {
      slider.value = to;
      steps[n] = Number(slider.value);
      output.textContent = data.layers[n].steps[steps[n]];
      before.disabled = steps[n] === 0;
      after.disabled = steps[n] === data.layers[n].steps.length - 1;
      draw();
    };
    before.addEventListener('click', () => go(steps[n] - 1));
    after.addEventListener('click', () => go(steps[n] + 1));
    slider.addEventListener('input', () => go(slider.value));
    before.disabled = true;
  }

  // ---- lines --------------------------------------------------------------------------------------------------
  function toggled(box, layer) {
    if (!box) return;
    const set = () => (box.checked ? layer.addTo(map) : layer.remove());
    box.addEventListener('input', set);
    set();
  }

  function list(rows) {
    const found = document.createElement('dl');
    for (const [label, text, colour] of rows) {
      const term = document.createElement('dt'), value = document.createElement('dd');
      term.textContent = label;
      value.textContent = text;
      if (colour) {
        const swatch = document.createElement('i');
        swatch.style.background = colour;
        value.prepend(swatch);
      }
      found.append(term, value);
    }
    return found;
  }

  const tiles = new Map();
  const grid = L.featureGroup(data.tiles.map(([id, state, ring, facts]) => {
    const shape = L.polygon(pairs(ring), {pane: 'tiles', weight: 1, className: `tile ${state}`});
    shape.bindTooltip(() => list([['tile', id], ['state', state], ...facts]), {sticky: true, className: 'facts'});
    tiles.set(id, {state, facts, shape});
    return shape;
  }));
  toggled($('tiles'), grid);
  toggled($('area'), L.featureGroup(data.area.map((ring) => L.polygon(pairs(ring), {
    pane: 'lines', interactive: false, fill: false, className: 'area',
  }))));

  const graticule = L.layerGroup();
  const STEPS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30];
  function label(lat, lon, text, side) {
    const words = document.createElement('span');
    words.textContent = text;
    return L.marker([lat, lon], {
      pane: 'lines', interactive: false, keyboard: false,
      icon: L.divIcon({html: words, className: `meridian ${side}`, iconSize: null}),
    });
  }
  function rule() {
    graticule.clearLayers();
    const seen = map.getBounds(), size = map.getSize();
    const west = seen.getWest(), east = seen.getEast(), south = seen.getSouth(), north = seen.getNorth();
    const lines = Math.max(2, size.x / 160);
    const step = STEPS.find((one) => (east - west) / one <= lines) || 30;
    const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
    const named = (value, positive, negative) => {
      const sign = Math.abs(value) < step / 2 ? '' : value > 0 ? positive : negative;
      return `${Math.abs(value).toFixed(digits)}°${sign}`;
    };
    const clear = (at, side) => at > 45 && at < side - 45; // where a label would be cut or lie under a control
    const line = (points) => L.polyline(points, {pane: 'lines', interactive: false, weight: 1, className: 'graticule'});
    for (let n = Math.ceil(west / step); n * step < east; n += 1) {
      graticule.addLayer(line([[south, n * step], [north, n * step]]));
      if (clear(map.latLngToContainerPoint([north, n * step]).x, size.x)) {
        graticule.addLayer(label(north, n * step, named(wrap(n * step), 'E', 'W'), 'top'));
      }
    }
    for (let n = Math.ceil(south / step); n * step < north; n += 1) {
      graticule.addLayer(line([[n * step, west], [n * step, east]]));
      if (clear(map.latLngToContainerPoint([n * step, east]).y, size.y)) {
        graticule.addLayer(label(n * step, east, named(n * step, 'N', 'S'), 'side'));
      }
    }
  }

  // ---- comparison ---------------------------------------------------------------------------------------------
  const compare = $('compare'), tag = $('right'), flip = $('flip');
  const right = map.getPane('right');
  const divider = document.createElement('div');
  divider.id = 'divider';
  divider.tabIndex = 0;
  const told = {role: 'slider', 'aria-label': 'Line of the comparison', 'aria-valuemin': '0', 'aria-valuemax': '100'};
  for (const [name, value] of Object.entries(told)) divider.setAttribute(name, value);
  map.getPane('divider').append(divider);
  L.DomEvent.disableClickPropagation(divider);
  const paper = document.createElement('div');
  paper.className = 'paper';
  right.append(paper);
  let share = 0.5, held = null;
  function cut() {
    const off = !held;
    for (const part of [divider, tag, flip, right]) if (part) part.hidden = off;
    if (off) return;
    const size = map.getSize(), corner = map.containerPointToLayerPoint([0, 0]);
    const x = corner.x + size.x * share, end = corner.x + size.x, bottom = corner.y + size.y;
    right.style.clipPath = `polygon(${x}px ${corner.y}px, ${end}px ${corner.y}px, ${end}px ${bottom}px, ${x}px ${bottom}px)`;
    L.DomUtil.setPosition(paper, corner);
    paper.style.width = `${size.x}px`;
    paper.style.height = `${size.y}px`;
    L.DomUtil.setPosition(divider, L.point(x, corner.y));
    divider.style.height = `${size.y}px`;
    divider.setAttribute('aria-valuenow', String(Math.round(share * 100)));
    tag.hidden = share > 0.95;
  }
  const move = (to) => { share = Math.min(1, Math.max(0, to)); cut(); };
  const flipped = () => move(share < 0.5 ? 1 : 0);
  if (compare) {
    compare.addEventListener('input', () => {
      if (held) held.remove();
      const [n, step] = compare.value.split(' ').map(Number);
      held = compare.value === '' ? null : group(n, step, 'right').addTo(map);
      tag.textContent = compare.selectedOptions[0].textContent;
      cut();
    });
    flip.addEventListener('click', flipped);
    divider.addEventListener('keydown', (event) => {
      const by = {ArrowLeft: -0.02, ArrowRight: 0.02, Home: -1, End: 1}[event.key];
      if (by) move(share + by);
      if (event.key === ' ') flipped();
      if (by || event.key === ' ') { event.preventDefault(); event.stopPropagation(); }
    });
    divider.addEventListener('pointerdown', (event) => {
      divider.setPointerCapture(event.pointerId);
      event.preventDefault();
      divider.focus();
    });
    divider.addEventListener('pointermove', (event) => {
      if (!divider.hasPointerCapture(event.pointerId)) return;
      const box = map.getContainer().getBoundingClientRect();
      move((event.clientX - box.left) / box.width);
    });
  }

  // ---- values under a place -----------------------------------------------------------------------------------
  const dot = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  dot.canvas.width = dot.canvas.height = 1;
  dot.imageSmoothingEnabled = false;
  function colourAt(picture, x, y) {
    const [west, south, east, north] = picture.bounds, image = images[picture.img];
    const col = Math.floor((x - west) / (east - west) * image.naturalWidth);
    const row = Math.floor((north - y) / (north - south) * image.naturalHeight);
    if (col < 0 || row < 0 || col >= image.naturalWidth || row >= image.naturalHeight) return null;
    dot.clearRect(0, 0, 1, 1);
    dot.drawImage(image, col, row, 1, 1, 0, 0, 1, 1);
    const [red, green, blue, alpha] = dot.getImageData(0, 0, 1, 1).data;
    return alpha ? [red, green, blue] : null;
  }
  const parse = (hex) => [1, 3, 5].map((k) => parseInt(hex.slice(k, k + 2), 16));
  const far = (a, b) => a.reduce((sum, value, k) => sum + (value - b[k]) ** 2, 0);
  function onRamp(ramp, colour) {
    let best = [Infinity, 0];
    for (let k = 1; k < ramp.length; k += 1) {
      const [low, high] = [parse(ramp[k - 1][1]), parse(ramp[k][1])];
      const along = colour.reduce((sum, value, c) => sum + (value - low[c]) * (high[c] - low[c]), 0);
      const t = Math.min(1, Math.max(0, along / (far(high, low) || 1)));
      const off = far(colour, low.map((value, c) => value + t * (high[c] - value)));
      if (off < best[0]) best = [off, ramp[k - 1][0] + t * (ramp[k][0] - ramp[k - 1][0])];
    }
    return Number(best[1].toPrecision(2));
  }
  function word(layer, colour) {
    if (layer.kind === 'class') {
      const found = layer.classes.filter(([, hex]) => far(parse(hex), colour) === 0);
      return found.map(([name]) => name).join(' or ') || 'no class of the legend';
    }
    if (layer.kind === 'ramp') return `about ${onRamp(layer.ramp, colour)} ${layer.unit}`.trim();
    return 'a colour only';
  }
  function tileAt(lon, lat) {
    const usual = Math.floor((wrap(lon) + 180) / 6) + 1;
    for (const zone of [usual, usual % 60 + 1, (usual + 58) % 60 + 1]) {
      const [x, y] = utm(lon, lat, zone), side = data.tile_m || 1;
      const id = `z${String(zone).padStart(2, '0')}_r${Math.floor(-y / side)}_c${Math.floor(x / side)}`;
      if (tiles.has(id) && (zone === usual || grid.hasLayer(tiles.get(id).shape))) return {zone, id};
    }
    return {zone: usual, id: ''};
  }
  function facts(place) {
    const lon = wrap(place.lng), {lat} = place, {zone, id} = tileAt(lon, lat);
    const [x, y] = utm(lon, lat, zone), south = y < 0;
    const rows = [
      ['lon, lat', `${lon.toFixed(6)}, ${lat.toFixed(6)}`],
      [`EPSG:${south ? 327 : 326}${String(zone).padStart(2, '0')}`, `${x.toFixed(1)}, ${(south ? y + 1e7 : y).toFixed(1)}`],
      ['tile', id ? `${id}, ${tiles.get(id).state}` : data.more ? 'none drawn here' : 'none'],
    ];
    const [across, up] = toMetres(place);
    const sizes = [];
    data.layers.forEach((layer, n) => {
      for (const picture of layer.pictures) {
        if (picture.step !== steps[n]) continue;
        const colour = colourAt(picture, across, up);
        if (!colour) continue;
        if (picture.pixel_m) sizes.push(picture.pixel_m);
        const step = layer.steps.length > 1 ? ` ${layer.steps[picture.step]}` : '';
        rows.push([layer.name + step, word(layer, colour), `rgb(${colour.join(',')})`]);
      }
    });
    if (rows.length === 3) rows.push(['values', 'no picture here']);
    return [rows, sizes];
  }
  function read(place) {
    const [rows, sizes] = facts(place), box = document.createElement('div'), note = document.createElement('p');
    const range = [...new Set([Math.min(...sizes), Math.max(...sizes)])].join(' to ');
    note.textContent = sizes.length
      ? `Read from the colours of pictures with pixels of ${range} m; vectors and exact values are in the files.`
      : 'Vectors and exact values are in the files.';
    box.append(list(rows), note);
    L.popup({className: 'facts', maxWidth: 340, minWidth: 220}).setLatLng(place).setContent(box).openOn(map);
  }
  map.on('click', (event) => read(event.latlng));
  map.getContainer().addEventListener('keydown', (event) => {
    if (event.target !== map.getContainer()) return;
    if (event.key === 'Enter') read(map.getCenter());
    if (event.key === ' ' && held) flipped();
    if (event.key === 'Enter' || event.key === ' ') event.preventDefault();
  });
  if ($('read')) $('read').addEventListener('click', () => read(map.getCenter()));

  // ---- start --------------------------------------------------------------------------------------------------
  const whole = () => { if (frame.isValid()) map.fitBounds(frame, {padding: [12, 12]}); };
  $('fit').addEventListener('click', whole);
  if (frame.isValid()) whole(); else map.setView([0, 0], 1);
  map.setMinZoom(Math.max(0, map.getZoom() - 2));
  toggled($('graticule'), graticule);
  rule();
  map.on('moveend zoomend resize', rule);
  map.on('move zoomend viewreset resize', cut);
  addEventListener('beforeprint', () => map.invalidateSize({animate: false}));

  for (const button of document.querySelectorAll('[data-tile]')) {
    const tile = tiles.get(button.dataset.tile);
    if (!tile) { button.disabled = true; continue; }
    button.addEventListener('click', () => {
      map.fitBounds(tile.shape.getBounds(), {maxZoom: map.getZoom() + 3, padding: [30, 30]});
      map.getContainer().scrollIntoView({block: 'center'});
      map.getContainer().focus({preventScroll: true});
    });
  }

  // A place in the address opens its values: report.html#11.25,46.5 (longitude, latitude).
  function linked() {
    const [lon, lat] = location.hash.slice(1).split(',').map(Number);
    if (!location.hash || Number.isNaN(lon) || Number.isNaN(lat)) return;
    const near = lon + 360 * Math.round((data.reference_lon - lon) / 360);
    map.setView([lat, near], map.getZoom(), {animate: false});
    read(L.latLng(lat, near));
  }
  addEventListener('hashchange', linked);
  function start() {
    draw();
    cut();
    linked();
    root.dataset.ready = 'map';
  }
  if (document.readyState === 'complete') start(); else addEventListener('load', start);
})();
