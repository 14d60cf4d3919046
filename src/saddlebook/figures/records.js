// The record browser: stored measurements of training runs, nothing between them.
// Points are measured; there are no lines through them, and sliders stop only at
// epochs and radii that were run.

export const unique = (values) => [...new Set(values)].sort((p, q) => p - q);
export const runs = (records, { method, rho }) =>
  records.filter((r) => r.method === method && r.rho === rho);
export const radii = (records, method) =>
  unique(records.filter((r) => r.method === method).map((r) => r.rho));
// Where this class was measured; of records without such spectra, where accuracy was.
export function epochs(record, { class_: label, mode }) {
  const some = record.spectra.filter((s) => s.class === label && s.mode === mode);
  return unique(some.length ? some.map((s) => s.epoch) : record.curves.epoch);
}
export const chosen = (state) => {
  const some = runs(state.records, state);
  return some.find((r) => r.seed === state.seed) || some[0];
};
export const modes = (records, label) => [...new Set(records.flatMap((r) =>
  r.spectra.filter((s) => label === undefined || s.class === label).map((s) => s.mode)))];
const way = (state, mode) => (state.ways || {})[mode] || mode;
export const spectrum = (record, { class_: label, epoch, mode }) =>
  record.spectra.find((s) => s.class === label && s.epoch === epoch && s.mode === mode);

// --- text

const GROUPS = [
  ["accuracy", "overall"],
  ["head", "head"],
  ["mid", "mid"],
  ["tail", "tail"],
];
const percent = (x) => `${say(x, 3)} %`;
const within = (value, bound) =>
  bound === undefined || bound === null ? say(value, 4) : `${say(value, 4)} ± ${say(bound, 2)}`;

export function story(state) {
  const record = chosen(state);
  const at = record.curves.epoch.indexOf(state.epoch);
  const groups = GROUPS.map(([name, words]) => `${words} ${percent(record.curves[name][at])}`);
  const found = spectrum(record, state);
  const rho = record.rho ? `, ρ = ${say(record.rho)}` : "";
  const which = `seed ${record.seed}, ${record.scale} scale, record ${record.key}`;
  const images = record.counts[state.class_];
  const told = [
    `${record.method}${rho}, ${which}.`,
    at < 0
      ? `Accuracy was not measured at epoch ${state.epoch}.`
      : `Test accuracy at epoch ${state.epoch}: ${groups.join(", ")}.`,
    `Class ${state.class_} (${images} training images): ` +
      `${percent(record.classes[state.class_])} after the last epoch, ${record.epochs}.`,
  ];
  if (!record.spectra.length) return told;
  if (!found) return [...told, `No spectrum of this class was measured at epoch ${state.epoch}.`];
  const [low, high] = ["lambda_min", "lambda_max"].map((n) =>
    within(found[n], found[`${n}_bound`]),
  );
  const ratio = say(Math.abs(found.lambda_min / found.lambda_max));
  return [
    ...told,
    `Its loss Hessian at epoch ${state.epoch} (${way(state, found.mode)}): λmin = ${low}, λmax = ${high}, ` +
      `|λmin/λmax| = ${ratio}.`,
  ];
}

// --- pictures

const faint = " sb-faint";
const others = (state) => runs(state.records, state).filter((r) => r !== chosen(state));

function curves(view, state) {
  const points = (run, more, r) => GROUPS.map(([name], g) => run.curves.epoch.map((epoch, i) =>
    dot(view, epoch, run.curves[name][i], `sb-group-${g}${more}`, r)));
  view.draw(upright(view, state.epoch, "sb-here"),
    others(state).map((run) => points(run, faint, 2)), points(chosen(state), "", 3.5));
}

function classes(view, state) {
  const points = (run, more, r) => run.classes.map((value, label) =>
    dot(view, label, value, `sb-sgd${more}`, r));
  view.draw(upright(view, state.class_, "sb-here"),
    others(state).map((run) => points(run, faint, 2)), points(chosen(state), "", 4));
}

function extremes(view, state) {
  const found = chosen(state).spectra.filter((s) =>
    s.class === state.class_ && s.mode === state.mode);
  const bar = (s, name, kind) => {
    const bound = s[`${name}_bound`] || 0;
    const ends = [-bound, bound].map((more) => [s.epoch, s[name] + more]);
    return [line(view, ends, `${kind} sb-bar`), dot(view, s.epoch, s[name], kind)];
  };
  view.draw(upright(view, state.epoch, "sb-here"), level(view, 0, "sb-zero"),
    found.map((s) => [bar(s, "lambda_min", "sb-sam"), bar(s, "lambda_max", "sb-sgd")]));
}

// A domain with room around the values of all records, so that pictures compare.
function around(values) {
  const [low, high] = [Math.min(0, ...values), Math.max(0, ...values)];
  const room = (high - low || 1) * 0.06;
  return [low - room, high + room];
}

function build(records) {
  const last = Math.max(...records.map((r) => r.epochs));
  const spectra = records.flatMap((r) => r.spectra);
  const size = records[0].classes.length;
  const [time, percents] = [[-0.02 * last, 1.02 * last], [0, 102]];
  const all = around(spectra.flatMap((s) => [s.lambda_min, s.lambda_max]));
  const made = (draw, title, [xLabel, x], [yLabel, y], kind) =>
    [draw, picture({ title, xLabel, yLabel, x: { domain: x }, y: { domain: y, kind } })];
  return [
    made(curves, "Test accuracy, %", ["epoch", time], ["%", percents]),
    made(classes, "Each class after the last epoch, %",
      ["class, most images first", [-0.05 * size, 1.02 * size]], ["%", percents]),
    spectra.length &&
      made(extremes, "λmin and λmax of this class's loss", ["epoch", time], ["eigenvalue", all]),
  ].filter(Boolean);
}

// --- controls

const NAMES = ["method", "rho", "seed", "class_", "epoch", "mode"];

function controls(model, now) {
  const { records } = now();
  const methods = [...new Set(records.map((r) => r.method))];
  // Of the class in view, or all of a record without its spectra
  const ways = () => {
    const own = modes(runs(records, now()), now().class_);
    return own.length ? own : modes(records);
  };
  const several = methods.some((method) => radii(records, method).length > 1);
  const seeds = () => runs(records, now()).map((r) => [r.seed, `${r.seed}`]);
  const images = records[0].counts.map((n, i) => [i, `${i} (${n} images)`]);
  const stops = () => epochs(chosen(now()), now());
  const rho = slider(model, { name: "rho", label: "Radius ρ", watch: ["method"],
    stops: () => radii(records, model.get("method")) });
  rho.hidden = !several;
  const seed = choice(model, { name: "seed", label: "Seed", options: seeds, watch: ["method", "rho"] });
  seed.hidden = unique(records.map((r) => r.seed)).length < 2;
  return group("Which record to show",
    choice(model, { name: "method", label: "Method", options: () => methods.map((m) => [m, m]) }),
    rho,
    seed,
    choice(model, { name: "class_", label: "Class", options: () => images }),
    slider(model, { name: "epoch", label: "Epoch", stops, watch: NAMES.filter((n) => n !== "epoch") }),
    player(model, { name: "epoch", label: "Epoch", stops, pause: 900 }),
    ...(modes(records).length < 2 ? [] : [choice(model, { name: "mode", label: "Measured",
      options: () => ways().map((m) => [m, way(now(), m)]), watch: ["method", "class_"] })]));
}

function render({ model, el }) {
  el.classList.add("sb-widget");
  const records = model.get("records");
  const values = () => Object.fromEntries(NAMES.map((name) => [name, model.get(name)]));
  const now = () => ({ records, ways: model.get("ways"), ...values() });
  const views = build(records);
  const words = html("div", { class: "sb-story", role: "status" });
  const key = GROUPS.map(([, name], g) => html("span", { class: `sb-group-${g}` }, name));
  if (unique(records.map((r) => r.seed)).length > 1)
    key.push(html("span", {}, "small: the other seeds"));
  el.append(controls(model, now), words, html("p", { class: "sb-key sb-dots" }, ...key),
    html("div", { class: "sb-views" }, ...views.map(([, view]) => view.node)));
  return live(model, NAMES, () => {
    const state = now();
    const told = story(state);
    words.replaceChildren(...told.map((text) => html("p", {}, text)));
    for (const [draw, view] of views) {
      draw(view, state);
      view.describe(`${view.title}. ${told.join(" ")}`);
    }
  });
}

export default { render };
