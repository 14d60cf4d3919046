// The lab: settings, live curves, runs over the radius, curvature, A against B. Draws
// what Python sends and sends back what the reader wants; without a kernel the stored
// runs can still be looked at. Drawn values are measured, or means of stored runs.

const GROUPS = ["overall", "head", "mid", "tail"];
const near = (p, q) => Math.abs(p - q) <= 1e-9 * Math.max(1, Math.abs(p));
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

// A number as a reader writes it, with a comma or a point; null for anything else.
export function number(text) {
  const plain = text.trim().replace("−", "-").replace(",", ".");
  return /^-?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$/i.test(plain) ? Number(plain) : null;
}

// Why a value cannot be taken, or "".
export function trouble(name, value) {
  if (value === null) return `${name}: a number such as 0,3 or 2e-4, please`;
  if (value < 0) return `${name} cannot be negative`;
  if (!Number.isFinite(value)) return `${name} is too large`;
  if (name === "seed" && !Number.isInteger(value)) return "seed: a whole number, please";
  if (name === "seed" && !Number.isSafeInteger(value)) return "seed has too many digits";
  return "";
}

export const radii = (runs) => [...new Set(runs.map((r) => r.rho))].sort((p, q) => p - q);
export const alike = (runs, { rho, weight_decay }) =>
  runs.filter((r) => near(r.rho, rho) && near(r.weight_decay, weight_decay));

// The mean run of some stored seeds, as if it were one; null without any.
export function average(runs) {
  if (!runs.length) return null;
  const [first] = runs;
  const curve = { epoch: first.curve.epoch };
  for (const name of GROUPS)
    curve[name] = first.curve[name].map((_, i) => mean(runs.map((r) => r.curve[name][i])));
  return { ...first, key: "", curve, spectra: [], words: `${first.words.replace(/, seed.*/, "")}, mean of ${runs.length} stored seeds`,
    ...Object.fromEntries(GROUPS.map((name) => [name, mean(runs.map((r) => r[name]))])) };
}

// --- controls

function box(model, name, label, complain) {
  const id = unusedId(name);
  const input = html("input", { type: "text", id, inputmode: "decimal", size: 7, autocomplete: "off" });
  input.dataset.lmSuppressShortcuts = "true";
  const show = () => { input.value = String(model.get(name)); input.removeAttribute("aria-invalid"); };
  const take = () => {
    const value = number(input.value);
    const why = trouble(label, value);
    if (why) { input.setAttribute("aria-invalid", "true"); return complain(why); }
    model.set(name, value);
    model.save_changes();
    show();
    complain("");
  };
  input.addEventListener("change", take);
  input.addEventListener("keydown", (event) => { if (event.key === "Enter") { event.preventDefault(); take(); } });
  model.on(`change:${name}`, show);
  show();
  return { input, show, node: html("label", { class: "sb-box", for: id }, label, input) };
}

// The radius: a range with a tick at every stored radius, a box for any other.
function radius(model, complain) {
  const { input, node, show: again } = box(model, "rho", "ρ", complain);
  const id = unusedId("ticks");
  const list = html("datalist", { id });
  const range = html("input", { type: "range", min: 0, step: "any", list: id, "aria-label": "SAM's radius ρ" });
  range.dataset.lmSuppressShortcuts = "true";
  const top = () => Math.max(...radii(model.get("stored")), 0.1) * 1.02;
  const show = () => {
    const known = radii(model.get("stored"));
    range.max = top();
    range.step = top() / 100;
    list.replaceChildren(...known.map((rho) => html("option", { value: rho })));
    range.value = model.get("rho");
    range.setAttribute("aria-valuetext", say(model.get("rho")));
  };
  range.addEventListener("input", () => {
    const raw = Number(range.value);
    // less than a step, so that an arrow key leaves a stored radius
    const close = radii(model.get("stored")).find((rho) => Math.abs(rho - raw) < top() / 190);
    model.set("rho", close ?? Number(raw.toPrecision(3)));
    model.save_changes();
    complain("");
  });
  model.on("change:rho", show);
  model.on("change:stored", show);
  show();
  return { inputs: [range, input], show: again, node: html("div", { class: "sb-rho" }, node, range, list) };
}

// --- pictures

const colour = (g, more = "") => `sb-g${g} ${more}`;

function curves(model, shown, lines, { width, height }) {
  const end = Math.max(...lines.map((l) => l.epochs));
  const view = picture({ title: "Test accuracy while it trains, %", xLabel: "epoch", yLabel: "",
    x: { domain: [0, end] }, y: { domain: [0, 102] }, width, height });
  const at = lines.find((l) => l.switch)?.switch;
  view.draw(
    at && upright(view, at, "sb-here"),
    at && note(view, at, 6, "re-weighting begins ", { "text-anchor": "end" }),
    lines.flatMap(({ curve, look }) => GROUPS.map((name, g) => shown.has(name) && curve.epoch.length > 0
      && line(view, curve.epoch.map((e, i) => [e, curve[name][i]]), colour(g, look)))),
  );
  return view;
}

function domain(values, room) {
  const [least, most] = [Math.min(...values), Math.max(...values)];
  const more = (most - least || 1) * room;
  return [least - more, most + more];
}

function overRadius(model, shown, stored, yours, size) {
  const [all, here] = [[...stored, ...yours], model.get("rho")];
  const names = GROUPS.filter((name) => shown.has(name));
  const heights = all.flatMap((r) => names.map((name) => r[name]));
  const view = picture({ title: "Last epoch over ρ, %", xLabel: "ρ; dots stored, rings yours", yLabel: "",
    x: { domain: domain([0, 0.1, here, ...all.map((r) => r.rho)], 0.04) }, y: { domain: domain(heights.length ? heights : [0, 100], 0.06) }, ...size });
  const layers = names.map((name) => {
    const g = GROUPS.indexOf(name);
    const means = radii(stored).map((rho) => [rho, mean(stored.filter((r) => near(r.rho, rho)).map((r) => r[name]))]);
    return [line(view, means, colour(g, "sb-thin")), stored.map((r) => dot(view, r.rho, r[name], colour(g), near(r.rho, here) ? 3 : 2)),
      yours.map((r) => dot(view, r.rho, r[name], colour(g, "sb-ring"), 6))];
  });
  view.draw(upright(view, here, "sb-here"), layers);
  return view;
}

// λmin and λmax of the rarest class, images fixed (dots, full rings) and as published.
export function ends(runs, mode) {
  return runs.flatMap((r) => r.spectra.filter((s) => s.mode === mode && !s.head)
    .map((s) => ({ rho: r.rho, ...s })));
}

function curvature(stored, yours, size) {
  const rows = [ends(stored, "clean"), ends(yours, "clean"), ends(yours, "as_published")];
  const most = rows.flat().flatMap((s) => [s.min, s.max]);
  const view = picture({ title: "Rarest class: λmax blue, λmin orange", xLabel: "ρ; dots stored, rings yours, ×: as published", yLabel: "",
    x: { domain: domain([0, 0.1, ...rows.flat().map((s) => s.rho)], 0.04) }, y: { domain: domain(most.length ? [0, ...most] : [-1, 1], 0.08) }, ...size });
  const cross = (x, y, kind) => svg("path", { class: kind,
    d: `M${view.x(x) - 5} ${view.y(y) - 5}l10 10m0 -10l-10 10` });
  view.draw(level(view, 0, "sb-zero"),
    rows[0].flatMap((s) => [dot(view, s.rho, s.max, "sb-g1", 2), dot(view, s.rho, s.min, "sb-g3", 2)]),
    rows[1].flatMap((s) => [dot(view, s.rho, s.max, "sb-g1 sb-ring", 6), dot(view, s.rho, s.min, "sb-g3 sb-ring", 6)]),
    rows[2].flatMap((s) => [cross(s.rho, s.max, "sb-g1"), cross(s.rho, s.min, "sb-g3")]));
  return view;
}

// --- tables

const cells = (tag, values) => html("tr", {}, ...values.map((v) => html(tag, {}, v)));

// What is known of the curvature of one run, in words.
export function told(run) {
  const of = (head, mode) => run.spectra.find((s) => s.mode === mode && s.head === head);
  const words = (s) => `λmin ${say(s.min)}, λmax ${say(s.max)}, ratio ${say(Math.abs(s.min / s.max), 2)}`;
  return [[false, "rarest class"], [true, "largest class"]].flatMap(([c, name]) => {
    const [clean, loose] = [of(c, "clean"), of(c, "as_published")];
    return clean ? [`${name}, images fixed: ${words(clean)}${loose ? `; as published: ${words(loose)}` : ""}.`] : [];
  });
}

// The curvature of one run: a row a class, both ways to measure side by side.
function curvatureTable(run) {
  const rows = [[false, "rarest class"], [true, "largest class"]].flatMap(([head, name]) => {
    const [clean, loose] = ["clean", "as_published"].map((mode) => run.spectra.find((s) => s.mode === mode && s.head === head));
    const three = (s) => (s ? [say(s.min), say(s.max), say(Math.abs(s.min / s.max), 2)] : ["", "", ""]);
    return clean ? [[name, ...three(clean), ...three(loose)]] : [];
  });
  const names = ["curvature", "fixed: λmin", "λmax", "|λmin/λmax|", "as published: λmin", "λmax", "|λmin/λmax|"];
  return rows.length ? [html("table", {}, cells("th", names), ...rows.map((row) => cells("td", row)))] : [];
}

function difference(rows) {
  const sign = (x) => `${x > 0 ? "+" : ""}${say(x)}`;
  return html("table", {}, cells("th", ["points", "A", "B", "B − A", "noise of seeds", ""]),
    ...rows.map((r) => cells("td", [r.group, say(r.a), say(r.b), sign(r.difference), `±${say(r.noise, 2)}`, r.word])));
}

// --- all of it

const SETTING = ["scale", "method", "rho", "weight_decay", "seed"];
const WORDS = [["more", "rise"], ["same", "stay"], ["less", "fall"]];

const NAMES = ["stored", "yours", "now", "tables", "presets", "rho", "weight_decay", "seed", "pinned", "answer", "method", "scale"];

function render({ model, el }) {
  el.classList.add("sb-widget", "sb-lab");
  const kernel = model.get("kernel");
  const ask = (what, more = {}) => {
    const setting = Object.fromEntries(SETTING.map((name) => [name, model.get(name)]));
    if (kernel) model.send({ do: what, setting: { ...setting, ...more } });
  };
  const shown = new Set(GROUPS);
  const hidden = new Set();

  const why = html("p", { class: "sb-bad", role: "alert" });
  const complain = (text) => { why.textContent = text; draw(); };
  const rho = radius(model, complain);
  const [decay, seed] = [box(model, "weight_decay", "weight decay", complain), box(model, "seed", "seed", complain)];
  const picks = ["scale", "method"].map((name) =>
    choice(model, { name, label: name === "scale" ? "data" : "loss", options: () => model.get(`${name}s`) }));
  const presets = html("div", { class: "sb-row", role: "group", "aria-label": "Presets" });
  const sideA = html("p");
  const guess = html("div", { class: "sb-row", role: "group", "aria-label": "Prediction" });
  const go = button("Run", () => ask("run"));
  const halt = button("Stop", () => ask("stop"));
  go.classList.add("sb-go");
  const bar = html("progress", { max: 1, value: 0, "aria-label": "Epochs" });
  const status = html("p", { class: "sb-status", role: "status" });
  const runs = html("div", { class: "sb-runs", tabindex: 0, role: "region", "aria-label": "Runs" });
  const pin = button("Pin as A", () => ask("pin"));
  const head = button("Curvature of the largest class", () => ask("head"));
  const clear = button("Clear", () => ask("clear"));
  const save = button("Export", () => ask("export"));
  const left = html("div", { class: "sb-left" }, ...picks, presets, rho.node,
    html("div", { class: "sb-row" }, decay.node, seed.node), why, sideA, guess,
    html("div", { class: "sb-row" }, go, halt, bar), status, runs, html("div", { class: "sb-row" }, pin, head, save, clear));

  const key = html("div", { class: "sb-row", role: "group", "aria-label": "Groups shown" },
    ...GROUPS.map((name, g) => {
      const input = html("input", { type: "checkbox" });
      input.checked = true;
      input.addEventListener("change", () => { shown[input.checked ? "add" : "delete"](name); draw(); });
      return html("label", { class: `sb-g${g}` }, input, name);
    }), html("span", {}, "thin: stored SGD · dashed: A"));
  const [upper, lower, below] = [html("div", { class: "sb-views sb-whole" }), html("div", { class: "sb-views sb-pair" }), html("div", { class: "sb-compared" })];
  el.append(html("div", { class: "sb-lab-grid" }, left, html("div", { class: "sb-right" }, key, upper, lower, below)));

  // A preset asks for a guess first: until Run its stored runs stay hidden
  let asked = false;
  const offer = ({ name, ...setting }) => button(name, () => {
    for (const [field, value] of Object.entries({ ...setting, guess: "" })) model.set(field, value);
    model.save_changes();
    asked = !alike([setting], model.get("pinned")).length;
    for (const part of [rho, decay, seed]) part.show();
    complain("");
  });
  const offerAll = () => presets.replaceChildren(...model.get("presets").map(offer));
  model.on("change:presets", offerAll);
  offerAll();
  for (const name of ["rho", "weight_decay", "seed"]) model.on(`change:${name}`, () => { asked = false; });
  model.on("change:now", () => { asked &&= model.get("now").state !== "running"; });
  model.on("change:guess", () => { asked &&= kernel || !model.get("guess"); });
  const guesses = WORDS.map(([value, words]) =>
    button(words, () => { model.set("guess", value); model.save_changes(); }));
  guess.append(html("span", {}, "Against A the tail will"), ...guesses);

  function table(yours) {
    const row = (r) => {
      const seen = html("input", { type: "checkbox", "aria-label": `show ${r.words}` });
      seen.checked = !hidden.has(r.key);
      seen.addEventListener("change", () => { hidden[seen.checked ? "delete" : "add"](r.key); draw(); });
      const choose = button(r.words, () => ask("choose", { rho: r.rho, weight_decay: r.weight_decay, seed: r.seed }));
      return html("tr", {}, html("td", {}, seen), html("td", {}, choose), html("td", {}, say(r.tail)), html("td", {}, say(r.overall)));
    };
    runs.replaceChildren(html("table", {}, cells("th", ["", "your runs", "tail", "overall"]), ...yours.toReversed().map(row)));
  }

  function draw() {
    const [now, pinned, mine] = [model.get("now"), model.get("pinned"), model.get("yours")];
    const setting = { rho: model.get("rho"), weight_decay: model.get("weight_decay") };
    const own = mine.findLast((r) => alike([r], setting).length && r.seed === model.get("seed"));
    const waits = asked && !own;
    const stored = model.get("stored").filter((r) => !waits || !alike([r], setting).length);
    const running = now.state === "running";
    const here = alike([now], setting).length > 0;
    const bad = now.bad && (here || now.state === "");
    const stopped = now.state === "stopped" && here;
    const b = own ?? average(alike(stored, setting));
    const a = mine.find((r) => r.key === pinned.key) ?? average(alike(stored, pinned));
    const sgd = average(alike(stored, { rho: 0, weight_decay: model.get("decay") }));
    const lines = [sgd && { ...sgd, look: "sb-thin" }, a && !(near(a.rho, 0) && !pinned.key) && { ...a, look: "sb-dashed" },
      running || (now.key && here && !b) ? { ...now, look: "" } : b && { ...b, look: "" }].filter(Boolean);
    const words = b && !running ? told(b) : [];
    const size = { width: 300, height: 178 };
    const alikeDecay = (runs) => runs.filter((r) => near(r.weight_decay, setting.weight_decay));
    const [dots, rings] = [alikeDecay(stored), alikeDecay(mine.filter((r) => !hidden.has(r.key)))];
    const views = [curves(model, shown, lines.length ? lines : [{ epochs: now.epochs, curve: now.curve, look: "" }], { width: 610, height: 200 }),
      overRadius(model, shown, dots, rings, size), curvature(dots, rings, size)];
    upper.replaceChildren(views[0].node);
    lower.replaceChildren(views[1].node, views[2].node);
    const guessed = WORDS.find(([value]) => value === model.get("guess"));
    const result = b ? `${b.words}: ${GROUPS.map((name) => `${name} ${say(b[name])} %`).join(", ")}`
      : !waits ? "no run at this setting yet"
        : guessed ? `You say the tail will ${guessed[1]}. Press Run` : "First say what the tail will do: rise, stay or fall";
    for (const view of views) view.describe(`${view.title}. ρ ${say(setting.rho)}; ${result}. ${words.join(" ")}`);
    status.textContent = !kernel ? `${result}. To train, open this chapter in Jupyter and run this cell.`
      : running || bad || stopped ? now.message
        : [model.get("answer"), `${result}.`, now.state === "" && now.message].filter(Boolean).join(" ");
    status.classList.toggle("sb-bad", bad);
    sideA.textContent = `A: ${a ? a.words : "nothing stored"}`;
    bar.max = now.epochs;
    if (running && now.epoch === 0) bar.removeAttribute("value");
    else bar.value = running || stopped ? now.epoch : 0;
    for (const node of [...rho.inputs, decay.input, seed.input, ...presets.children, ...guesses]) node.disabled = running && kernel;
    for (const node of [go, ...picks.map((p) => p.querySelector("select"))]) node.disabled = running || !kernel;
    go.disabled ||= Boolean(why.textContent); // the box is not what would run
    halt.disabled = !running;
    for (const node of [pin, clear]) node.disabled = running || !kernel;
    for (const node of [head, save]) node.disabled = running || !kernel || !own;
    for (const [i, node] of guesses.entries()) node.setAttribute("aria-pressed", String(guessed === WORDS[i]));
    table(mine);
    const found = model.get("tables").find((t) => b && alike([t], setting).length && t.key === b.key);
    below.replaceChildren(...(found && !running ? [difference(found.rows)] : []),
      ...(b && !running ? curvatureTable(b) : []));
  }
  return live(model, [...NAMES, "guess"], draw);
}

export default { render };
