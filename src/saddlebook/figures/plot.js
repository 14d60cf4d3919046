// Small pieces every widget is made of: SVG, axes, labelled controls, spoken text.
// Concatenated before the widget's own module, so names here are plain globals of it.

const NS = "http://www.w3.org/2000/svg";

// An id that no other widget of the page has; each is a module of its own.
function unusedId(kind) {
  globalThis.saddlebookIds = (globalThis.saddlebookIds || 0) + 1;
  return `sb-${kind}-${globalThis.saddlebookIds}`;
}

function put(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}
const html = (tag, attributes = {}, ...children) =>
  put(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) =>
  put(document.createElementNS(NS, tag), attributes, children);

// Maps data to pixels. kind "log" needs a positive domain.
function scale(domain, range, kind = "linear") {
  const f = kind === "log" ? Math.log10 : (x) => x;
  const [low, high] = domain.map(f);
  const [from, to] = range;
  const at = (x) => from + ((f(x) - low) / (high - low)) * (to - from);
  return Object.assign(at, { domain, range, kind });
}

function ticks({ domain: [low, high], kind }) {
  if (kind === "log") {
    const [first, last] = [Math.ceil(Math.log10(low)), Math.floor(Math.log10(high))];
    const every = Math.ceil((last - first + 1) / 6);
    const powers = [];
    for (let p = first; p <= last; p += every) powers.push(10 ** p);
    return powers;
  }
  const rough = (high - low) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const unit = [1, 2, 5, 10].find((u) => u * power >= rough * 0.999) * power;
  const found = [];
  for (let i = Math.ceil(low / unit - 1e-9); i * unit <= high + 1e-9; i++) found.push(i * unit);
  return found;
}

// Numbers as a reader says them: three digits, a real minus sign.
function say(x, digits = 3) {
  if (x === null || Number.isNaN(x)) return "–";
  if (!Number.isFinite(x)) return x > 0 ? "∞" : "−∞";
  const far = Math.abs(x) >= 1e5 || (x !== 0 && Math.abs(x) < 1e-3);
  if (!far) return String(Number(x.toPrecision(digits))).replace("-", "−");
  const [front, power] = x.toExponential(1).replace(".0e", "e").split("e");
  const raised = power
    .replace(/[-+0-9]/g, (c) => "⁻⁺⁰¹²³⁴⁵⁶⁷⁸⁹"["-+0123456789".indexOf(c)])
    .replace("⁺", "");
  return `${front === "1" ? "" : `${front.replace("-", "−")}·`}10${raised}`;
}

// A picture with axes. draw(...layers) replaces what is inside, describe(text) what a
// screen reader says of it.
// bare: without axes, for images.
function picture({ title, xLabel, yLabel, x, y, bare, width = 360, height = 270 }) {
  const [left, right, top, bottom] = [52, width - 15, 26, height - 40];
  const clip = unusedId("clip");
  const inside = svg("g", { "clip-path": `url(#${clip})` });
  const rim = svg("g", { class: "sb-axis" });
  const window = svg("rect", { x: left, y: top, width: right - left, height: bottom - top });
  const view = {
    title,
    names: [xLabel, yLabel],
    x: scale(x.domain, [left, right], x.kind),
    y: scale(y.domain, [bottom, top], y.kind),
    node: svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" },
      svg("clipPath", { id: clip }, window), rim, inside),
    describe: (text) => view.node.setAttribute("aria-label", text),
    draw: (...layers) => inside.replaceChildren(...layers.flat(9).filter(Boolean)),
  };
  rim.append(...axes(view, { title, xLabel, yLabel, width, height }).slice(0, bare ? 1 : undefined));
  return view;
}

function axes(view, { title, xLabel, yLabel, width, height }) {
  const [left, right] = view.x.range;
  const [bottom, top] = view.y.range;
  const [across, along] = [(left + right) / 2, (top + bottom) / 2];
  const text = (words, x, y, more = {}) => svg("text", { x, y, ...more }, words);
  const [middle, end] = [{ "text-anchor": "middle" }, { "text-anchor": "end" }];
  return [
    text(title, left, 16, { class: "sb-title" }),
    text(xLabel, across, height - 6, middle),
    text(yLabel, 12, along, { ...middle, transform: `rotate(-90 12 ${along})` }),
    ...ticks(view.x).flatMap((t) => [
      svg("line", { x1: view.x(t), x2: view.x(t), y1: top, y2: bottom }),
      text(say(t), view.x(t), bottom + 15, middle),
    ]),
    ...ticks(view.y).flatMap((t) => [
      svg("line", { x1: left, x2: right, y1: view.y(t), y2: view.y(t) }),
      text(say(t), left - 5, view.y(t) + 4, end),
    ]),
  ];
}

// A line through points [[x, y], …]; gaps at non-finite values.
function line(view, points, kind, more = {}) {
  let d = "";
  let pen = "M";
  for (const [px, py] of points) {
    const [a, b] = [view.x(px), view.y(py)];
    if (!Number.isFinite(a) || !Number.isFinite(b)) {
      pen = "M";
      continue;
    }
    d += `${pen}${a.toFixed(1)} ${b.toFixed(1)}`;
    pen = "L";
  }
  return svg("path", { d: d || "M0 0", class: kind, ...more });
}
const level = (view, y, kind) => line(view, view.x.domain.map((x) => [x, y]), kind);
const upright = (view, x, kind) => line(view, view.y.domain.map((y) => [x, y]), kind);
// A mark says its values when the mouse rests on it.
const hover = ({ names: [x, y] }, px, py) =>
  svg("title", {}, `${x}: ${say(px, 4)}\n${y}: ${say(py, 4)}`);
const dot = (view, px, py, kind, r = 4) =>
  svg("circle", { cx: view.x(px), cy: view.y(py), r, class: kind }, hover(view, px, py));
const note = (view, px, py, words, more = {}) =>
  svg("text", { x: view.x(px), y: view.y(py), class: "sb-words", ...more }, words);

// Controls that belong together; no form, so that Enter submits nothing.
const group = (label, ...children) =>
  html("div", { class: "sb-controls", role: "group", "aria-label": label }, ...children);

// A native range with label, value and spoken value. kind "log" moves in decades. stops:
// a function giving the only values it takes, asked again whenever a name in watch changes.
function slider(model, { name, label, min, max, step, kind, stops, watch = [] }) {
  const id = unusedId(name);
  const input = html("input", { type: "range", id });
  input.dataset.lmSuppressShortcuts = "true"; // JupyterLab would take the arrow keys
  const shown = html("output", { for: id });
  let values = null;
  const toSlider = (v) => (values ? values.indexOf(v) : kind === "log" ? Math.log10(v) : v);
  const toValue = (v) =>
    values ? values[v] : kind === "log" ? Number((10 ** v).toPrecision(3)) : v;
  const limit = () => {
    values = stops ? stops() : null;
    const [low, high, by] = values
      ? [0, values.length - 1, 1]
      : [toSlider(min), toSlider(max), step];
    Object.assign(input, { min: low, max: high, step: by, disabled: low === high });
    if (values && !values.includes(model.get(name))) model.set(name, values[values.length - 1]);
    show();
  };
  const show = () => {
    input.value = toSlider(model.get(name));
    shown.textContent = say(model.get(name), 4);
    input.setAttribute("aria-valuetext", say(model.get(name), 4));
  };
  input.addEventListener("input", () => {
    model.set(name, toValue(Number(input.value)));
    model.save_changes();
  });
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter") event.preventDefault(); // inside a form it would submit
  });
  model.on(`change:${name}`, show);
  for (const other of watch) model.on(`change:${other}`, limit);
  limit();
  return html("div", { class: "sb-control" }, html("label", { for: id }, label), input, shown);
}

// A native select. options: a function giving [[value, words], …]; watch as above.
function choice(model, { name, label, options, watch = [] }) {
  const id = unusedId(name);
  const input = html("select", { id });
  input.dataset.lmSuppressShortcuts = "true";
  let known = [];
  const show = () => {
    input.value = String(model.get(name));
  };
  const list = () => {
    known = options();
    input.replaceChildren(
      ...known.map(([value, words]) => html("option", { value: String(value) }, words)),
    );
    if (!known.some(([value]) => value === model.get(name))) model.set(name, known[0][0]);
    show();
  };
  input.addEventListener("change", () => {
    model.set(name, known.find(([value]) => String(value) === input.value)[0]);
    model.save_changes();
  });
  model.on(`change:${name}`, show);
  for (const other of watch) model.on(`change:${other}`, list);
  list();
  return html("div", { class: "sb-control" }, html("label", { for: id }, label), input);
}

function button(label, press) {
  const node = html("button", { type: "button" }, label);
  node.addEventListener("click", press);
  return node;
}

// A button that steps a value through its stops and stops at the last. Where the system
// asks for less motion one press is one step. While it plays nothing is read aloud.
function player(model, { name, label, stops, pause }) {
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  let timer = null;
  const show = () => {
    node.textContent = calm.matches ? "Next" : timer ? "Pause" : "Play";
    node.setAttribute("aria-label", `${node.textContent}: ${label}`);
    const told = node.closest(".sb-widget")?.querySelector(".sb-story");
    if (told) told.setAttribute("aria-live", timer ? "off" : "polite");
  };
  const halt = () => {
    clearInterval(timer);
    timer = null;
    show();
  };
  const next = () => {
    const values = stops();
    const at = values.indexOf(model.get(name)) + 1;
    model.set(name, values[at % values.length]);
    model.save_changes();
    if (timer && (at === values.length - 1 || !node.isConnected)) halt();
  };
  const node = button("", () => {
    if (timer) return halt();
    if (!calm.matches) timer = setInterval(next, pause);
    next();
    show();
  });
  calm.addEventListener("change", halt);
  show();
  return html("div", { class: "sb-control" }, node);
}

// Redraw once a frame however many values changed.
function live(model, names, draw) {
  let waiting = false;
  const later = () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      draw();
    });
  };
  for (const name of names) model.on(`change:${name}`, later);
  draw();
  return () => names.forEach((name) => model.off(`change:${name}`, later));
}
