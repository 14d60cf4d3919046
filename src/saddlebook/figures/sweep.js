// The radius explorer: accuracy of every stored run over SAM's radius, the paper's own
// curve beside it. Points are measured; nothing between them is drawn, and the slider
// stops only at radii that were run.

const GROUPS = ["overall", "head", "mid", "tail"];
const near = (p, q) => Math.abs(p - q) < 1e-9;
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

export const radii = (runs) => [...new Set(runs.map((r) => r.rho))].sort((p, q) => p - q);
export const at = (runs, rho) => runs.filter((r) => near(r.rho, rho));

// --- text

const percent = (x) => `${say(x, 3)} %`;
const list = (values) => values.map((x) => say(x, 3)).join(", ");

export function story({ runs, printed, rho, scale }) {
  const here = at(runs, rho);
  const theirs = here.length ? here[0].published : rho;
  const told = here.length
    ? [`ρ = ${say(rho)} at ${scale} scale, ${say(theirs)} at the paper's: ${here.length} run${here.length > 1 ? "s" : ""} (seeds ${here.map((r) => r.seed).join(", ")}).`,
      ...GROUPS.map((name) => `${name}: ${percent(mean(here.map((r) => r[name])))} on average; each run ${list(here.map((r) => r[name]))}.`)]
    : [`No stored run at ${scale} scale yet.`];
  const same = at(printed, theirs);
  if (here.length) told.push(same.length ? `The paper at ρ = ${say(theirs)}: ${same.map((p) => `${p.group} ${percent(p.value)}`).join(", ")}.`
    : `The paper shows nothing at ρ = ${say(theirs)}.`);
  return told;
}

// --- pictures

function domain(values, room, low = -Infinity, high = Infinity) {
  const [least, most] = [Math.min(...values), Math.max(...values)];
  const more = (most - least || 1) * room;
  return [Math.max(low, least - more), Math.min(high, most + more)];
}

function build({ runs, printed, scale }) {
  const heights = [...runs.flatMap((r) => GROUPS.map((name) => r[name])), ...printed.map((p) => p.value)];
  const y = { domain: domain(heights, 0.06, -5, 105) };
  const made = (title, rows) => picture({ title, xLabel: "ρ", yLabel: "test accuracy, %",
    x: { domain: domain([0, ...(rows.length ? rows : printed).map((r) => r.rho)], 0.05) }, y });
  return { ours: made(`Here, ${scale} scale`, runs), theirs: made("The paper, its scale", printed) };
}

function draw(views, { runs, printed, rho }) {
  const some = at(runs, rho);
  const dots = (view, rows, faint) => rows.flatMap((r) => GROUPS.map((name, g) =>
    dot(view, r.rho, r[name], `sb-group-${g}${faint}`, faint ? 2.5 : 4)));
  views.ours.draw(upright(views.ours, rho, "sb-here"), dots(views.ours, runs.filter((r) => !near(r.rho, rho)), " sb-faint"),
    dots(views.ours, some, ""));
  const theirs = some.length ? some[0].published : rho;
  views.theirs.draw(upright(views.theirs, theirs, "sb-here"), printed.map((p) => dot(views.theirs, p.rho, p.value,
    `sb-group-${GROUPS.indexOf(p.group)}${near(p.rho, theirs) ? "" : " sb-faint"}`, near(p.rho, theirs) ? 4 : 2.5)));
}

function render({ model, el }) {
  el.classList.add("sb-widget");
  const names = ["runs", "printed", "rho", "scale"];
  const now = () => Object.fromEntries(names.map((name) => [name, model.get(name)]));
  const form = html("form", { class: "sb-controls", "aria-label": "Which stored radius to show" },
    slider(model, { name: "rho", label: "Stored ρ", watch: ["runs"],
      stops: () => { const known = radii(model.get("runs")); return known.length ? known : [model.get("rho")]; } }));
  const words = html("div", { class: "sb-story", role: "status" });
  const key = html("p", { class: "sb-key sb-dots" }, ...GROUPS.map((name, g) => html("span", { class: `sb-group-${g}` }, name)),
    html("span", {}, "small: the other radii"));
  const room = html("div", { class: "sb-views" });
  el.append(form, words, key, room);
  return live(model, names, () => {
    const state = now();
    const told = story(state);
    const views = build(state);
    words.replaceChildren(...told.map((text) => html("p", {}, text)));
    room.replaceChildren(...Object.values(views).map((view) => view.node));
    draw(views, state);
    for (const view of Object.values(views)) view.describe(`${view.title}. ${told.join(" ")}`);
  });
}

export default { render };
