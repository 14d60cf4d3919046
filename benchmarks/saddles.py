"""Walkers on a saddle, and one frame of the explorer; best of five on one core.

10,000 walkers x 1,000 steps in Python; in JavaScript (Node), what the explorer computes
for one picture at its default size: 2 x 100 walkers x 400 steps and 2,000 mini-batches.

OMP_NUM_THREADS=1 python benchmarks/saddles.py
"""

import json
import shutil
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from saddlebook.figures.widgets import asset, saddle_explorer
from saddlebook.theory.landscapes import Rule, saddle, walk

RULES = {
    "SGD": Rule(0.01),
    "SGD, momentum": Rule(0.01, momentum=0.9),
    "plain SAM, same batch": Rule(0.01, 0.5, normalised=False),
    "plain SAM, fresh batch": Rule(0.01, 0.5, normalised=False, fresh=True),
    "SAM, same batch": Rule(0.01, 0.5),
    "SAM, momentum": Rule(0.01, 0.5, momentum=0.9),
    "SAM, fresh batch, momentum": Rule(0.01, 0.5, momentum=0.9, fresh=True),
}


def seconds(rule: Rule, walkers: int = 10_000, steps: int = 1_000) -> float:
    land = replace(saddle(), sigma=0.1)
    start = time.perf_counter()
    walk(land, (0.0, 0.05), rule, steps=steps, walkers=walkers, exit=None)
    return time.perf_counter() - start


def frame(**state: object) -> str:
    """Milliseconds of ``look`` once the page is warm, from Node."""
    node = shutil.which("node")
    if not node:
        return "Node is not installed"
    with tempfile.TemporaryDirectory() as folder:
        module = Path(folder) / "explorer.mjs"
        module.write_text(asset("plot.js", "theory.js"), "utf-8")
        code = (
            f"import * as m from {json.dumps(str(module))};"
            f"const state = {json.dumps(saddle_explorer(**state).state)};"
            "const noise = m.normals(1, 4 * m.SIZE.walkers * m.SIZE.steps);"
            "let best = Infinity;"
            "for (let i = 0; i < 50; i++) { const t = performance.now();"
            " m.look(state, noise); best = Math.min(best, performance.now() - t); }"
            "console.log(best.toFixed(2));"
        )
        command = [node, "--input-type=module", "-e", code]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip()


if __name__ == "__main__":
    print("| rule | seconds | ns per walker and step |\n|---|---|---|")
    for name, rule in RULES.items():
        best = min(seconds(rule) for _ in range(5))
        print(f"| {name} | {best:.2f} | {best / 1e7 * 1e9:.0f} |")
    print("\n| explorer | ms a frame, of 16 |\n|---|---|")
    print(f"| default | {frame()} |")
    print(f"| noise, fresh batch | {frame(sigma=0.3, batch='fresh')} |")
