// The mathematics of saddles.py and landscapes.py for the saddle explorer, held to them
// by tests. No picture here.

// --- mathematics: names and formulas as in saddles.py

export const regime = (a) =>
  a <= 0
    ? "unchanged"
    : a < 1
      ? "damped"
      : a === 1
        ? "annihilated"
        : a <= 2
          ? "reversed"
          : "amplified";

// Moduli of the roots of z² − (1 + β + k)z + β, and the roots themselves where real.
export function roots(k, beta = 0) {
  const half = (1 + beta + k) / 2;
  const inside = half ** 2 - beta;
  if (inside < 0) return { size: Math.sqrt(beta), z1: NaN, z2: NaN };
  const z1 = half >= 0 ? half + Math.sqrt(inside) : half - Math.sqrt(inside);
  return { size: Math.abs(z1), z1, z2: beta / z1 };
}
export const overshootThreshold = (beta = 0) => 1 - beta;

export function escapeTime(start, eta, lambda, rho = 0, normalised = false, beta = 0, exit = 1) {
  const rate = eta * -lambda;
  const centre = normalised ? rho : 0;
  const begin = Math.abs(start) - centre;
  if (normalised && begin < 0) return rate > overshootThreshold(beta) ? NaN : Infinity;
  const { size, z1, z2 } = roots(normalised ? rate : rate * (1 + rho * lambda), beta);
  if (begin === 0 || size <= 1 + 1e-12) return Infinity;
  const scale = Math.abs((begin * z1 * (1 - z2)) / (z1 - z2));
  return Math.floor(Math.log((exit - centre) / scale) / Math.log(size)) + 1;
}

// A stream of standard normals from a seed: mulberry32 and Box–Muller.
export function normals(seed, count) {
  let state = seed >>> 0;
  const uniform = () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  const found = new Float64Array(count);
  for (let i = 0; i < count; i += 2) {
    const radius = Math.sqrt(-2 * Math.log(1 - uniform()));
    const turn = 2 * Math.PI * uniform();
    found[i] = radius * Math.cos(turn);
    if (i + 1 < count) found[i + 1] = radius * Math.sin(turn);
  }
  return found;
}

// Walk one walker on f = (x² + λy²)/2 + quartic·y⁴/4 until |y| > exit. noise holds four
// normals a step from offset on: two for each pass. keep: whether to return the path.
export function walk(start, rule, steps, noise, offset = 0, keep = true) {
  const { eta, rho, normalised, beta, fresh, lambda, quartic, sigma, exit } = rule;
  let [x, y] = start;
  let [ux, uy] = [0, 0];
  const path = [[x, y]];
  const slope = (v) => lambda * v + quartic * v * v * v;
  for (let t = 0; t < steps; t++) {
    const at = offset + 4 * t;
    let gx = x + sigma * noise[at];
    let gy = slope(y) + sigma * noise[at + 1];
    if (rho) {
      const climb = normalised ? rho / (Math.sqrt(gx * gx + gy * gy) + 1e-12) : rho;
      const again = fresh ? at + 2 : at;
      gx = x + climb * gx + sigma * noise[again];
      gy = slope(y + climb * gy) + sigma * noise[again + 1];
    }
    ux = beta * ux + gx;
    uy = beta * uy + gy;
    x -= eta * ux;
    y -= eta * uy;
    if (keep) path.push([x, y]);
    if (Math.abs(y) > exit) return { path, escape: t + 1 };
  }
  return { path, escape: Infinity };
}

// Mean square of ⟨v, g_SAM⟩ over that of ⟨v, g⟩, and mean step of SAM over that of SGD,
// over mini-batches drawn at (0, y).
export function measured(y, rule, noise, draws) {
  const sum = { sgd: 0, sam: 0, push: 0 };
  for (let i = 0; i < draws; i++) {
    const at = 4 * i;
    const first = walk([0, y], { ...rule, rho: 0, beta: 0, eta: 1 }, 1, noise, at).path[1][1] - y;
    const then = walk([0, y], { ...rule, beta: 0, eta: 1 }, 1, noise, at).path[1][1] - y;
    sum.sgd += first ** 2;
    sum.sam += then ** 2;
    sum.push += then;
  }
  return { factor: sum.sam / sum.sgd, drift: sum.push / draws / (-rule.lambda * y) };
}

export const SIZE = { walkers: 100, steps: 400, draws: 2000, x: 0.5 };

// Everything the pictures and the text show, as numbers, from the widget's state.
export function look(state, noise) {
  const { rho, curvature, step_size: eta, momentum: beta, sigma, start } = state;
  const lambda = -curvature;
  const normalised = state.method === "normalised";
  const well = state.landscape === "well";
  const rule = {
    eta,
    beta,
    lambda,
    sigma,
    normalised,
    rho,
    fresh: state.batch === "fresh",
    quartic: well ? curvature : 0,
    exit: well ? 0.9 : 1,
  };
  const norm = Math.hypot(sigma * Math.SQRT2, curvature * start);
  const run = (radius) =>
    Array.from({ length: SIZE.walkers }, (_, i) =>
      walk([SIZE.x, start], { ...rule, rho: radius }, SIZE.steps, noise, 4 * SIZE.steps * i, i < 8),
    );
  return {
    rule,
    norm,
    well,
    a: normalised ? (rho * curvature) / norm : rho * curvature,
    seen: measured(start, rule, noise, sigma ? SIZE.draws : 1),
    sgd: run(0),
    sam: run(rho),
    told: {
      sgd: escapeTime(start, eta, lambda, 0, false, beta),
      sam: escapeTime(start, eta, lambda, rho, normalised, beta),
    },
  };
}
