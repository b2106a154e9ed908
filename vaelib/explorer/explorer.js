// The explorer's face: sliders, map and picture. How a latent vector becomes a picture it
// leaves to `decode(z)`, which gives bytes, plane by plane, or a promise of them.
//
// about: {name, shape: [C, H, W], dims: [{dim, nats, follows?}], limit, points?: {z, labels, colours},
//         manifold?: URL, starts?: [{label, z, picture: URL}], directions?: [{name, v}],
//         draws?: [z], terms?: text, prior?: name, of which `draw()` gives a z, or a promise of it}

function mount(root, about, decode, inFlight = 1, draw = null) {
  root.classList.add("vae-explorer");
  root.dataset.lmSuppressShortcuts = "true"; // or JupyterLab takes the arrow keys for itself,
  root.addEventListener("keydown", (event) => event.stopPropagation()); // or the focus
  root.replaceChildren();
  const left = add(root, "div", { class: "vae-left" });
  const screen = addPicture(left, about);
  if (!screen) {
    root.textContent = "This browser has no canvas: open this in another one.";
    return null;
  }
  const status = add(left, "div", { class: "vae-status", role: "status", "aria-live": "polite" });
  const say = (text) => { status.textContent = text; };
  const place = placeInLatentSpace(about, latestWins(decode, inFlight, say, (bytes, n, elapsed) => {
    screen.paint(bytes, n);
    root.dispatchEvent(new CustomEvent("picture", { detail: elapsed }));
  }));
  addButtons(left, about, place, screen, say, draw);
  addComparison(left, place, say);
  const right = add(root, "div", { class: "vae-right" });
  if (about.points || about.manifold) addMap(add(right, "div", { class: "vae-map" }), about, place);
  addSliders(right, about, place);
  addStarts(right, about, place);
  if (about.terms) add(right, "p", { class: "vae-terms" }, about.terms);
  place.refresh();
  return place;
}

// Where we are: the sliders' values, and on top of them the strengths of attributes. Whoever
// shows that adds a function to `onJump` or `onMove`; `ask(z)` has the picture drawn.
function placeInLatentSpace(about, ask) {
  const base = new Float32Array(about.dims.length);
  const strengths = (about.directions || []).map(() => 0);
  const place = {
    base, strengths, temperature: 1, onJump: [], onMove: [],
    current() {
      const z = base.slice();
      strengths.forEach((s, i) => about.directions[i].v.forEach((v, d) => { z[d] += s * v; }));
      return z;
    },
    refresh() {
      place.onMove.forEach((show) => show());
      ask(place.current());
    },
    go(z) {
      base.set(z);
      strengths.fill(0);
      place.onJump.forEach((show) => show());
      place.refresh();
    },
  };
  return place;
}

// From z to the picture: the latest position wins, at most `inFlight` are on their way
function latestWins(decode, inFlight, say, show) {
  let wanted = null, moved = 0, flying = 0, asked = 0, shown = 0;
  function pump() {
    while (wanted && flying < inFlight) {
      const z = wanted, since = moved, number = ++asked;
      wanted = null;
      flying++;
      Promise.resolve().then(() => decode(z)).then((bytes) => {
        if (number < shown) return;
        shown = number;
        say("");
        show(bytes, number, performance.now() - since);
      }).catch((error) => say(String(error.message || error)))
        .finally(() => { flying--; pump(); });
    }
  }
  return (z) => {
    wanted = z;
    moved = performance.now();
    pump();
  };
}

// --- small helpers for the page
const gaussian = () =>
  Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());

function add(parent, tag, attributes = {}, text = "") {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text) element.textContent = text;
  parent.append(element);
  return element;
}

function addButton(parent, text, title, act) {
  const element = add(parent, "button", { type: "button", title }, text);
  element.addEventListener("click", act);
  return element;
}

function addSlider(parent, label, low, high, value, act) {
  const line = add(parent, "label", { class: "vae-line" });
  add(line, "span", { class: "vae-name", title: label }, label);
  const range = add(line, "input",
    { type: "range", min: low, max: high, step: 0.01, value, "aria-label": label });
  const number = add(line, "span", { class: "vae-value", "aria-hidden": "true" },
    Number(value).toFixed(2));
  range.addEventListener("input", () => {
    number.textContent = Number(range.value).toFixed(2);
    act(Number(range.value));
  });
  return { set(v) { range.value = v; number.textContent = Number(v).toFixed(2); } };
}

// --- the picture and its buttons
function addPicture(parent, about) {
  const [channels, height, width] = about.shape;
  const canvas = add(parent, "canvas",
    { width, height, class: height < 48 ? "vae-picture vae-crisp" : "vae-picture", role: "img",
      "aria-label": `the picture that ${about.name} decodes from z` });
  const context = canvas.getContext("2d");
  if (!context) return null;
  function paint(bytes, number) {
    const image = context.createImageData(width, height), plane = height * width;
    for (let i = 0; i < plane; i++) {
      for (let c = 0; c < 3; c++) image.data[4 * i + c] = bytes[channels === 3 ? c * plane + i : i];
      image.data[4 * i + 3] = 255;
    }
    context.putImageData(image, 0, 0);
    canvas.dataset.frame = number;
  }
  function save() {
    const large = document.createElement("canvas"), times = Math.max(1, Math.round(448 / height));
    large.width = width * times;
    large.height = height * times;
    const paper = large.getContext("2d");
    paper.imageSmoothingEnabled = height >= 48;
    paper.drawImage(canvas, 0, 0, large.width, large.height);
    const link = add(parent, "a", { download: `${about.name}.png`, href: large.toDataURL() });
    link.click();
    link.remove();
  }
  return { paint, save };
}

function addButtons(parent, about, place, screen, say, draw) {
  const { base, go } = place, n = base.length;
  const buttons = add(parent, "div", { class: "vae-buttons" });
  const own = about.prior, whose = own ? `the model's prior (${own})` : "the prior";
  const drawn = draw || (() => base.map(() => place.temperature * gaussian()));
  addButton(buttons, own ? "zero" : "mean", own ? "every latent 0" : "the prior's mean: every latent 0",
    () => go(base.map(() => 0)));
  addButton(buttons, "draw", `a random draw from ${whose}`,
    () => Promise.resolve().then(drawn).then(go).catch((error) => say(error.message)));
  if (about.draws)
    addButton(buttons, "draw, fitted", "a draw from the density fitted to encoded images",
      () => go(about.draws[Math.floor(Math.random() * about.draws.length)]));
  if (n > 1) addButton(buttons, "shuffle", "the same values on other dimensions", () => {
    const z = base.slice();
    for (let i = n - 1; i > 0; i--) {
      const j = Math.floor(Math.random() * i); // never everything where it was (Sattolo 1986)
      [z[i], z[j]] = [z[j], z[i]];
    }
    go(z);
  });
  addButton(buttons, "save PNG", "save the picture", screen.save);
  addButton(buttons, "copy z", "copy the latent vector as a list of numbers", async () => {
    const text = JSON.stringify(Array.from(place.current(), (v) => Number(v.toFixed(4))));
    try {
      await navigator.clipboard.writeText(text);
      say("z is on the clipboard");
    } catch {
      say(text); // no clipboard here: show it, to be marked and copied
    }
  });
}

// --- two slots and the way between them
function addComparison(parent, place, say) {
  const held = { A: null, B: null };
  const slots = add(parent, "div", { class: "vae-buttons" }), between = add(parent, "div");
  let way = null;
  for (const slot of ["A", "B"])
    addButton(slots, `hold ${slot}`, `keep this z as ${slot}`, () => {
      held[slot] = place.current();
      say(`${slot} is held`);
      if (held.A && held.B) {
        way = way || addSlider(between, "A to B", 0, 1, 0,
          (t) => place.go(held.A.map((a, d) => (1 - t) * a + t * held.B[d])));
        way.set(slot === "A" ? 0 : 1);
      }
    });
}

// --- sliders: the dimensions that carry most first, the dead ones folded away
function addSliders(parent, about, place) {
  const { base, strengths } = place, limit = about.limit;
  function sliderFor(fold, { dim, nats, follows }) {
    const name = follows ? `z[${dim}] (${follows})` : `z[${dim}]`;
    const label = nats === null ? name : `${name}, ${nats.toFixed(1)} nats`;
    const slider = addSlider(fold, label, -limit, limit, 0,
      (v) => { base[dim] = v; place.refresh(); });
    place.onJump.push(() => slider.set(base[dim]));
  }
  const dead = about.dims.filter((d) => d.nats !== null && d.nats < 0.05);
  const alive = about.dims.filter((d) => !dead.includes(d));
  alive.slice(0, 12).forEach((d) => sliderFor(parent, d));
  for (const [title, some] of [["more dimensions", alive.slice(12)], ["dead dimensions", dead]])
    if (some.length) {
      const fold = add(parent, "details");
      add(fold, "summary", {}, `${some.length} ${title}`);
      some.forEach((d) => sliderFor(fold, d));
    }
  if (base.length > 2 && !about.prior)
    addSlider(parent, "draw's temperature", 0, 2, 1, (t) => { place.temperature = t; });
  if (!strengths.length) return;
  const fold = add(parent, "details", { open: "" });
  add(fold, "summary", {}, "attributes");
  about.directions.forEach(({ name }, i) => {
    const slider = addSlider(fold, name, -2, 2, 0, (s) => { strengths[i] = s; place.refresh(); });
    place.onJump.push(() => slider.set(0));
  });
}

function addStarts(parent, about, place) {
  if (!about.starts || !about.starts.length) return;
  const strip = add(parent, "div",
    { class: "vae-strip", role: "group", "aria-label": "images to start from" });
  for (const { label, z, picture } of about.starts) {
    const start = addButton(strip, "", `start from ${label}`, () => place.go(z));
    add(start, "img", { src: picture, alt: label });
  }
}

// --- two dimensions: drag over the encoded images
function addMap(parent, about, { base, go, onMove }) {
  const size = 300, far = about.limit + 0.5;
  const within = (v) => Math.min(far, Math.max(-far, v));
  const square = add(parent, "div", { class: "vae-square" });
  const chart = add(square, "canvas", { width: 2 * size, height: 2 * size, tabindex: 0,
    role: "application", "aria-label": "map of the latent plane: drag, or use the arrow keys" });
  const mark = add(square, "div", { class: "vae-mark" });
  drawMap(chart, about, size, far);
  const follow = (event) => {
    const box = chart.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width - 0.5) * 2 * far;
    const y = (0.5 - (event.clientY - box.top) / box.height) * 2 * far;
    go([x, y].map(within));
  };
  chart.addEventListener("pointerdown", (event) => {
    chart.setPointerCapture(event.pointerId);
    follow(event);
  });
  chart.addEventListener("pointermove", (event) => { if (event.buttons) follow(event); });
  chart.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
    if (!(event.key in step)) return;
    event.preventDefault();
    go(base.map((v, d) => within(v + 0.1 * step[event.key][d])));
  });
  onMove.push(() => {
    const [x, y] = [...base].map(within);
    mark.style.left = `${50 + (50 * x) / far}%`;
    mark.style.top = `${50 - (50 * y) / far}%`;
    chart.setAttribute("aria-label",
      `map of the latent plane, at ${x.toFixed(1)}, ${y.toFixed(1)}: drag, or use the arrow keys`);
  });
  if (!about.points) return;
  const legend = add(parent, "div", { class: "vae-legend" });
  for (const label of [...new Set(about.points.labels)].sort((a, b) => a - b)) {
    const key = add(legend, "span", {}, String(label));
    key.style.setProperty("--colour", colourOf(about.points, label));
  }
}

// Of a class; a page has the colours from Python, the same as in every picture
const colourOf = ({ colours }, label) => colours[label % colours.length];

// The decoded grid, and over it a dot for each encoded image
function drawMap(chart, about, size, far) {
  const ink = chart.getContext("2d"), unit = size / (2 * far), reach = about.limit * unit;
  ink.scale(2, 2); // sharp on dense screens
  const dots = () => about.points && about.points.z.forEach(([x, y], i) => {
    ink.fillStyle = colourOf(about.points, about.points.labels[i]);
    ink.fillRect(size / 2 + x * unit - 1.2, size / 2 - y * unit - 1.2, 2.4, 2.4);
  });
  ink.fillRect(0, 0, size, size);
  if (!about.manifold) return dots();
  const page = new Image();
  page.onload = () => {
    ink.globalAlpha = 0.5;
    ink.drawImage(page, size / 2 - reach, size / 2 - reach, 2 * reach, 2 * reach);
    ink.globalAlpha = 1;
    dots();
  };
  page.src = about.manifold;
}
