// Stages: pictures computed beforehand for every choice of a few controls. A control has
// a list of values; layers and sentences are nested lists with a place for each of them.

export const pick = (state, by, nested) => by.reduce((part, name) =>
  part[state.controls.find((c) => c.name === name).values.indexOf(state[name])], nested);

// Points of a layer; where one coordinate is a step (its number: axis), those so far.
export const points = (state, { by, points: all, axis }) =>
  pick(state, by, all).filter((p) => axis === undefined || p[axis] <= state.step);

const words = (x) => (x === null ? "not measured"
  : Number.isInteger(x) ? x.toLocaleString("en").replace("-", "−") : say(x));

// Sentences; {0} is the first of the numbers that belong to this choice.
export const story = (state) => state.story.map(({ of, text, by, values }) => {
  const numbers = pick(state, by, values);
  return pick(state, of, text).replace(/{(\d)}/g, (_, i) => words(numbers[i]));
});

// A cell of the sheet of images, cut as training cuts it: moved, then mirrored.
function tile(view, sheet, size, [x, y, column, row, down = 0, across = 0, mirrored = 0]) {
  const place = { x: view.x(x) - size / 2, y: view.y(y) - size / 2, width: size, height: size };
  const cell = svg("svg", { x: -across, y: -down, width: 32, height: 32,
    viewBox: `${32 * column} ${32 * row} 32 32` }, svg("use", { href: `#${sheet}` }));
  const turned = mirrored ? { transform: "translate(32 0) scale(-1 1)" } : {};
  return svg("svg", { ...place, viewBox: "0 0 32 32" },
    svg("rect", { width: 32, height: 32 }), svg("g", turned, cell));
}

function bar(view, kind, [x, y]) {
  const [foot, top] = [view.y(view.y.domain[0]), view.y(y)];
  const width = 0.7 * (view.x(1) - view.x(0));
  return svg("rect", { x: view.x(x) - width / 2, y: top, width, height: foot - top, class: kind },
    hover(view, x, y));
}

function marks(view, state, layer, sheet) {
  const { mark, kind, size = 3, axis } = layer;
  const found = points(state, layer);
  if (mark === "line") return line(view, found, kind);
  if (mark === "upright") return found.map(([x]) => upright(view, x, kind));
  if (mark === "bar") return found.map((p) => bar(view, kind, p));
  if (mark === "tile") return found.map((p) => tile(view, sheet, size, p));
  const past = (p) => axis !== undefined && p[axis] < state.step;
  return found.map((p) => dot(view, p[0], p[1], past(p) ? `${kind} sb-faint` : kind, past(p) ? 0.7 * size : size));
}

function control(model, { name, label, values, words, pause }) {
  const told = words && values.map((value, i) => [value, words[i]]);
  const stops = () => values;
  return [
    words ? choice(model, { name, label, options: () => told }) : slider(model, { name, label, stops }),
    pause && player(model, { name, label, stops, pause }),
  ].filter(Boolean);
}

const FIXED = ["controls", "views", "layers", "story", "legend", "sheet"];

function render({ model, el }) {
  el.classList.add("sb-widget");
  const fixed = Object.fromEntries(FIXED.map((name) => [name, model.get(name)]));
  const names = fixed.controls.map((c) => c.name);
  const now = () => ({ ...fixed, ...Object.fromEntries(names.map((n) => [n, model.get(n)])) });
  const views = fixed.views.map(picture);
  const sheet = unusedId("sheet");
  const store = svg("svg", { style: "position: absolute", width: 0, height: 0, "aria-hidden": true },
    svg("defs", {}, svg("image", { id: sheet, href: fixed.sheet || "" })));
  const box = html("div", { class: "sb-story", role: "status" });
  const legend = fixed.legend.map(([kind, text]) => html("span", { class: `sb-${kind}` }, text));
  el.append(group("What to show", ...fixed.controls.flatMap((c) => control(model, c))), box,
    html("p", { class: "sb-key" }, ...legend), ...(fixed.sheet ? [store] : []),
    html("div", { class: "sb-views" }, ...views.map((view) => view.node)));
  return live(model, names, () => {
    const state = now();
    const told = story(state);
    box.replaceChildren(...told.map((text) => html("p", {}, text)));
    views.forEach((view, i) => {
      const mine = fixed.layers.filter((layer) => layer.view === i);
      view.draw(mine.map((layer) => marks(view, state, layer, sheet)));
      view.describe(`${view.title}. ${told.join(" ")}`);
    });
  });
}

export default { render };
