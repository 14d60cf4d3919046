// The saddle explorer: what theory.js computes, as text and pictures. Runs without a
// kernel and without a network.

// --- text: one story for eyes and screen readers

const out = (walks) => (100 * walks.filter((w) => Number.isFinite(w.escape)).length) / walks.length;
const steps = (t) => (Number.isFinite(t) ? `after ${say(t, 6)} steps` : "never");

export function story({ a, norm, rule, seen, told, sgd, sam, well }) {
  const sign = 1 - a;
  const where = sign > 0 ? "away from" : "towards";
  const way = `mean step along v ${say(sign)} times SGD's, ${where} the saddle`;
  const name = rule.normalised ? "ρ|λ|/‖g‖" : "ρ|λ|";
  const size = rule.normalised ? ` with ‖g‖ = ${say(norm)} at the start` : "";
  const extra = rule.fresh && rule.sigma
    ? " (a fresh second batch adds noise that the theorem does not have)" : "";
  const later = Number.isNaN(told.sam) ? "leaves by overshooting" : steps(told.sam);
  const end = well ? "reach a minimum" : "leave";
  return [
    `a = ${name} = ${say(a)}${size}: ${regime(a)}. Factor (1 − a)² = ${say(sign ** 2)}, ` +
      `${Math.abs(sign) < 1e-9 ? "no mean step along v" : way}.`,
    `Measured over mini-batches: factor ${say(seen.factor)}, mean step ${say(seen.drift)}${extra}.`,
    `On the pure saddle without noise SGD leaves ${steps(told.sgd)}, SAM ${later}. Here ` +
      `${say(out(sgd))} % of the SGD walkers and ${say(out(sam))} % of the SAM walkers ${end} ` +
      `within ${SIZE.steps} steps.`,
  ];
}

// --- pictures

const SCENES = [
  ["Choose a scene …", {}],
  ["SAM as used: trapped", {}],
  ["Noise against a small radius", { rho: 0.1, sigma: 0.1 }],
  ["Theorem: damped, a = 0.5", { method: "plain", rho: 0.5, sigma: 0.02 }],
  ["Theorem: annihilated, a = 1", { method: "plain", rho: 1, sigma: 0.02 }],
  ["Theorem: reversed, a = 1.5", { method: "plain", rho: 1.5, sigma: 0.02 }],
  ["Theorem: amplified, a = 3, and drawn in", { method: "plain", rho: 3, sigma: 0.02 }],
  ["Fresh second batch, a = 1", { method: "plain", rho: 1, sigma: 0.1, batch: "fresh" }],
  ["Large step: overshoot sets it free", { step_size: 1.2 }],
  ["Momentum 0.9 lowers the overshoot", { step_size: 0.2, momentum: 0.9 }],
  ["Double well with noise", { landscape: "well", rho: 0.5, sigma: 0.3 }],
];

// A level set of f is x = ±√(2·level − λy² − quartic·y⁴/2); where that starts or ends,
// between two rows, the curve meets x = 0.
function contours(view, { rule }) {
  const rows = Array.from({ length: 89 }, (_, i) => -1.1 + i / 40);
  const levels = [-0.4, -0.25, -0.15, -0.08, -0.03, 0, 0.03, 0.08, 0.15, 0.25];
  return levels.flatMap((level) => {
    const square = (y) =>
      2 * level * -rule.lambda - rule.lambda * y * y - (rule.quartic * y ** 4) / 2;
    const half = rows.flatMap((y, i) => {
      const [here, next] = [square(y), square(rows[i + 1] ?? y)];
      const turn = here * next < 0 ? [[0, y + here / 40 / (here - next)]] : [];
      return [[Math.sqrt(here), y], ...turn];
    });
    const mirrored = (side) => half.map(([x, y]) => [side * x, y]);
    return [-1, 1].map((side) => line(view, mirrored(side), "sb-contour"));
  });
}

// The path up to the step shown.
const walked = ({ path }, time) => path.slice(0, time + 1);

function plane(view, seen, time) {
  const { rule, sgd, sam } = seen;
  const bundle = (walks, kind) =>
    walks.slice(1, rule.sigma ? 8 : 1).map((w) => line(view, walked(w, time), `${kind} sb-faint`));
  const last = (w) => walked(w, time).at(-1);
  const [cx, cy] = [view.x(0), view.y(0)];
  const rx = Math.abs(view.x(-rule.rho * rule.lambda) - cx);
  const ry = Math.abs(view.y(rule.rho) - cy);
  view.draw(
    rule.normalised && svg("ellipse", { cx, cy, rx, ry, class: "sb-trap" }),
    contours(view, seen),
    bundle(sgd, "sb-sgd"),
    bundle(sam, "sb-sam"),
    line(view, walked(sgd[0], time), "sb-sgd"),
    line(view, walked(sam[0], time), "sb-sam"),
    dot(view, ...last(sgd[0]), "sb-sgd"),
    dot(view, ...last(sam[0]), "sb-sam"),
    dot(view, ...sgd[0].path[0], "sb-start"),
  );
}

const BANDS = [[0, 1, "damped"], [1, 2, "reversed"], [2, 4.2, "amplified"]];

function band(view, [from, to, name], i) {
  const [low, high] = view.y.domain;
  const [x, y] = [view.x(from), view.y(high)];
  const size = { width: view.x(to) - x, height: view.y(low) - y };
  return [
    svg("rect", { x, y, ...size, class: `sb-band sb-band-${i}` }),
    note(view, (from + to) / 2, 9.1, name, { "text-anchor": "middle" }),
  ];
}

function factor(view, { a, seen }) {
  const grid = Array.from({ length: 85 }, (_, i) => i / 20);
  const edge = Math.min(a, 4);
  const inside = (f) => Math.max(-3, Math.min(9, f));
  view.draw(
    BANDS.map((one, i) => band(view, one, i)),
    level(view, 0, "sb-zero"),
    level(view, 1, "sb-zero"),
    line(view, grid.map((v) => [v, (1 - v) ** 2]), "sb-sam"),
    line(view, grid.map((v) => [v, 1 - v]), "sb-drift"),
    note(view, 3.1, 5.6, "(1 − a)²", { "text-anchor": "end" }),
    note(view, 2.9, -1.2, "1 − a"),
    upright(view, edge, "sb-here"),
    dot(view, edge, inside(seen.factor), "sb-sam", 5),
    dot(view, edge, inside(seen.drift), "sb-drift", 5),
  );
}

function distance(view, { rule, sgd, sam }, time) {
  const trace = (w) => walked(w, time).map(([, y], t) => [t, Math.max(Math.abs(y), 1e-4)]);
  view.draw(
    level(view, rule.exit, "sb-zero"),
    rule.normalised && rule.rho && level(view, rule.rho, "sb-here"),
    line(view, trace(sgd[0]), "sb-sgd"),
    line(view, trace(sam[0]), "sb-sam"),
  );
}

function survival(view, { sgd, sam }, time) {
  const curve = (walks) => {
    const times = walks.map((w) => w.escape).filter(Number.isFinite).sort((p, q) => p - q);
    const left = (i) => 100 - (100 * i) / walks.length;
    const drops = times.flatMap((t, i) => [[t, left(i)], [t, left(i + 1)]]);
    return [[0, 100], ...drops, [SIZE.steps, left(times.length)]];
  };
  view.draw(upright(view, time, "sb-here"),
    line(view, curve(sgd), "sb-sgd"), line(view, curve(sam), "sb-sam"));
}

// [draw, title, x, y, what it shows in words, which sentence of the story it tells]
const VIEWS = [
  [plane, "Paths: walker 1 bold, others faint",
    { label: "x (curvature +1)", domain: [-0.7, 0.7] },
    { label: "y, along v (curvature −|λ|)", domain: [-1.1, 1.1] },
    "Paths of SGD and SAM on contours of the landscape.", 2],
  [factor, "Theorem 1: dots are measured",
    { label: "a", domain: [0, 4.2] }, { label: "times SGD's", domain: [-3.4, 10] },
    "The factor (1 − a)² and the mean step 1 − a, for a from 0 to 4.", 0],
  [distance, "Distance from the saddle, walker 1",
    { label: "step", domain: [0, SIZE.steps] },
    { label: "|y|", domain: [1e-4, 2], kind: "log" },
    "Distance along v at every step, logarithmic.", 2],
  [survival, "Walkers still at the saddle, %",
    { label: "step", domain: [0, SIZE.steps] }, { label: "%", domain: [0, 105] },
    `Share of ${SIZE.walkers} walkers that have not left.`, 2],
];

// --- controls

const KINDS = {
  method: ["SAM climbs", ["normalised", "ρ·g/‖g‖ (as used)"], ["plain", "ρ·g (the theorem's)"]],
  batch: ["Second pass", ["same", "same batch"], ["fresh", "fresh batch"]],
  landscape: ["Landscape", ["saddle", "saddle"], ["well", "double well"]],
};
const RANGES = {
  rho: { label: "Radius ρ", min: 0, max: 4, step: 0.05 },
  curvature: { label: "Curvature |λ|", min: 0.1, max: 4, step: 0.1 },
  step_size: { label: "Step size η", min: 0.001, max: 3, step: 0.02, kind: "log" },
  momentum: { label: "Momentum β", min: 0, max: 0.95, step: 0.05 },
  sigma: { label: "Noise σ", min: 0, max: 0.5, step: 0.01 },
  start: { label: "Start y", min: 0.001, max: 0.9, step: 0.02, kind: "log" },
};
const NAMES = [...Object.keys(KINDS), ...Object.keys(RANGES), "seed"];
// Small steps first: an overshoot leaves within ten
const TIMES = [...new Set(Array.from({ length: 90 }, (_, i) => Math.round(SIZE.steps ** (i / 89))))];
const TIME = { name: "time", label: "Step shown", stops: () => [0, ...TIMES], pause: 60 };

function controls(model, first) {
  const set = (values) => {
    for (const [name, value] of Object.entries(values)) model.set(name, value);
    model.save_changes();
  };
  const id = unusedId("scene");
  const words = SCENES.map(([text], i) => html("option", { value: i }, text));
  const scenes = html("select", { id }, ...words);
  scenes.dataset.lmSuppressShortcuts = "true";
  scenes.addEventListener("change", () => set({ ...first, ...SCENES[scenes.value][1] }));
  const kind = (name) => {
    const [label, ...options] = KINDS[name];
    return choice(model, { name, label, options: () => options });
  };
  const range = (name) => slider(model, { name, ...RANGES[name] });
  const fresh = button("New noise", () => set({ seed: model.get("seed") + 1 }));
  const reset = button("Reset", () => set(first, (scenes.value = 0)));
  return group("Settings of the saddle explorer",
    html("div", { class: "sb-control" }, html("label", { for: id }, "Scene"), scenes),
    kind("method"), ...Object.keys(RANGES).map(range), kind("batch"), kind("landscape"),
    slider(model, TIME), player(model, TIME),
    html("div", { class: "sb-control" }, fresh, reset));
}

const KEY = [["sgd", "SGD"], ["sam", "SAM, and the factor (1 − a)²"],
  ["drift", "mean step 1 − a"], ["trap", "‖g‖ < ρ|λ|: SAM is drawn in"]];

function render({ model, el }) {
  el.classList.add("sb-widget");
  const now = () => Object.fromEntries(NAMES.map((name) => [name, model.get(name)]));
  const views = VIEWS.map(([, title, x, y]) =>
    picture({ title, xLabel: x.label, yLabel: y.label, x, y }));
  const words = html("div", { class: "sb-story", role: "status" });
  const key = KEY.map(([kind, text]) => html("span", { class: `sb-${kind}` }, text));
  el.append(controls(model, now()), words, html("p", { class: "sb-key" }, ...key),
    html("div", { class: "sb-views" }, ...views.map((view) => view.node)));
  let noise = { seed: null };
  let seen = null;
  let told = [];
  const compute = () => {
    const { seed } = now();
    if (noise.seed !== seed) {
      noise = { seed, values: normals(seed, 4 * SIZE.walkers * SIZE.steps) };
    }
    seen = look(now(), noise.values);
    told = story(seen);
    words.replaceChildren(...told.map((text) => html("p", {}, text)));
  };
  let last = "";
  return live(model, [...NAMES, "time"], () => {
    const state = JSON.stringify(now());
    if (state !== last) compute();
    last = state;
    VIEWS.forEach(([draw, , , , shows, which], i) => {
      draw(views[i], seen, model.get("time"));
      views[i].describe(`${shows} ${told[which]}`);
    });
  });
}

export default { render };
