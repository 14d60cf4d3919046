"""Deliberate mistakes in the class-Hessian code: each must turn a test red.

Run: python benchmarks/mutants.py [name ...]   (all of them: some minutes)
Each mistake is put into a copy of the package; the tests it should break run on that
copy. A test run that stays green is a hole in the tests and fails this script.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Mistake(NamedTuple):
    name: str
    module: str
    right: str
    wrong: str
    tests: str  # file and -k expression


MISTAKES = [
    Mistake("weights from the last row", "lanczos", "vectors[0] ** 2",
            "vectors[-1] ** 2", "test_lanczos moments"),
    Mistake("no re-orthogonalisation", "lanczos",
            "basis[: k + 1] if full else", "basis[max(0, k - 1) : k + 1] if full else",
            "test_lanczos orthonormal or ghosts"),
    Mistake("one Gram-Schmidt pass, basis in float32", "lanczos",
            "for _ in range(2 if full else 1)", "for _ in range(1)",
            "test_lanczos orthonormal or exact"),
    Mistake("β before re-orthogonalisation", "lanczos",
            "state.beta.append(float(rest.norm()))",
            "state.beta.append(float((product.double() - state.alpha[-1] * "
            "basis[k].double()).norm()))", "test_lanczos moments or bounds"),
    Mistake("1e-6 added in the normalisation", "lanczos",
            "rest / state.beta[-1]", "rest / (state.beta[-1] + 1e-6)",
            "test_lanczos moments or orthonormal"),
    Mistake("division by a remainder that is rounding", "lanczos",
            "if state.beta[-1] > 10 * torch.finfo(basis.dtype).eps * largest:",
            "if state.beta[-1] > 0:", "test_lanczos exhausted or rank"),
    Mistake("smallest absolute value taken for λmin", "lanczos",
            "ends = state.vector(vectors[:, 0])",
            "ends = state.vector(vectors[:, values.abs().argmin()])",
            "test_lanczos bounds"),
    Mistake("recurrence's estimate as bound", "lanczos",
            "float((product - value * vector).norm())", "0.0",
            "test_lanczos unconverged"),
    Mistake("float32 sums", "lanczos", "rest = product.double()\n",
            "rest = product\n", "test_lanczos digits or float32"),
    Mistake("starts that ignore the seed", "lanczos", "np.array([seed, stream]",
            "np.array([0, stream]", "test_lanczos starts"),
    Mistake("lines keep their quadrature weight", "spectrum",
            "torch.where(lines, 1 / self.size, rest)",
            "torch.where(lines, self.weights, rest)", "test_lanczos lines"),
    Mistake("kernel without its norm", "spectrum",
            "(sigma * math.sqrt(2 * math.pi))", "sigma", "test_lanczos mass"),
    Mistake("multiple eigenvalues drawn as lines", "spectrum",
            "(self.weights * self.size <= _SINGLE)", "(self.weights > 0)",
            "test_lanczos multiple"),
    Mistake("resumed runs start from the first vector", "lanczos",
            "basis = _room(state.basis, steps + 1)",
            "basis = _room(state.basis[:1].repeat(len(state.basis), 1), steps + 1)",
            "test_lanczos resumed"),
    Mistake("chunks not weighted by their size", "products",
            "share = (piece.stop - piece.start) / len(self.labels)",
            "share = self.chunk / len(self.labels)",
            "test_hessian dense_hessian or chunks"),
    Mistake("batch norm in train mode", "problem",
            'batch = batch_norm == "batch" and isinstance',
            "batch = isinstance", "test_hessian dense_hessian or left_as"),
    Mistake("modes not restored", "problem", "module.training = training\n",
            "pass\n", "test_hessian left_as"),
    Mistake("loss in float32", "products",
            "picked(found, self.problem.output).double()",
            "picked(found, self.problem.output).float()",
            "test_hessian dense_hessian or memorised"),
    Mistake("graph of the first images reused", "products", "other._kept = {}\n",
            "\n", "test_hessian other_images"),
    Mistake("γ forgotten in the folded weight's derivative", "resnet",
            "+ _rows(new) * now[self.conv]", "", "test_hessian dense_hessian"),
    Mistake("plain gradient forgotten in the unfolding", "resnet",
            "+ _rows(new) * slope", "", "test_hessian dense_hessian"),
    Mistake("running mean forgotten for γ", "resnet", "- bias * self.mean)", ")",
            "test_hessian dense_hessian"),
    Mistake("shortcut's gradient dropped", "resnet",
            "add_shortcut_gradient(delta, joint, self.blocks[number])", "pass",
            "test_hessian dense_hessian"),
    Mistake("slopes of the first images reused", "resnet",
            "other._slopes = None\n", "pass\n", "test_hessian other_images"),
    Mistake("cosine heads take the exact trace", "certify",
            "return len(mapped) == len(set(mapped)) and all(",
            "return True or all(", "test_hessian refused"),
    Mistake("tied weights take the exact trace", "certify",
            "        return False  # tied", "        pass  # tied",
            "test_hessian refused"),
    Mistake("trace without the biases", "certify", 'if _wanted(layer, "bias"):',
            "if False:", "test_hessian exact_where"),
    Mistake("Gram form with the wrong sum", "certify", "(d.mT @ d) * gram",
            "(d.mT @ d) + gram", "test_hessian gram"),
    Mistake("deflated trace without the projection", "certify",
            "beside = signs - project(basis, signs)", "beside = signs",
            "test_hessian covers_the_truth"),
    Mistake("rounding left out of the bound", "certify",
            "floor = _rounding(exact, result.vector_max) * result.scale",
            "floor = 0.0", "test_hessian rounding or within_their_bounds"),
    Mistake("bf16 ends certified in bf16", "certify",
            "exact = ResNetProduct(product.problem, product.dtype)",
            "exact = product", "test_hessian bf16_products"),
    Mistake("rounding of the exact trace taken too small", "certify",
            "_TRACE_ROUNDING = 32", "_TRACE_ROUNDING = 1", "test_hessian in_float32"),
    Mistake("changing products not noticed", "certify",
            "if not torch.equal(product(vector), product(vector)):", "if False:",
            "test_hessian under_equal_outputs"),
    Mistake("random forward not noticed", "certify",
            "if not torch.equal(first, second):", "if False:",
            "test_hessian changing_operator"),
    Mistake("released β after re-orthogonalisation", "lanczos",
            'rest if beta == "before" else clean', "clean",
            "test_published released or mirrored"),
    Mistake("redrawn images drawn once", "hessian",
            "redraw(images, seed, next(calls), product.dtype)",
            "redraw(images, seed, first, product.dtype)",
            "test_published redrawn_products or pyhessian"),
    Mistake("wrong class measured", "hessian", "rows = (labels == number)",
            "rows = (labels != number)", "test_published every_mode"),
]  # fmt: skip


def main(names: list[str]) -> int:
    chosen = [m for m in MISTAKES if not names or m.name in names]
    missed = []
    for mistake in chosen:
        began = time.perf_counter()
        verdict = caught(mistake)
        seconds = time.perf_counter() - began
        print(f"{verdict:8} {mistake.name} ({mistake.module}, {seconds:.0f} s)",
              flush=True)  # fmt: skip
        if verdict != "caught":
            missed.append(mistake.name)
    print(f"{len(chosen) - len(missed)} of {len(chosen)} mistakes caught")
    return 1 if missed else 0


def caught(mistake: Mistake) -> str:
    """``caught``, ``MISSED``, or ``STALE`` if the line to change is not there."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "saddlebook"
        shutil.copytree(ROOT / "src" / "saddlebook", package)
        file = package / "curvature" / f"{mistake.module}.py"
        text = file.read_text()
        if text.count(mistake.right) != 1:
            return "STALE"
        file.write_text(text.replace(mistake.right, mistake.wrong))
        return "MISSED" if green(folder, mistake.tests) else "caught"


def green(folder: str, tests: str) -> bool:
    file, _, expression = tests.partition(" ")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider",
               str(ROOT / f"tests/curvature/{file}.py"), "-k", expression]  # fmt: skip
    env = os.environ | {"PYTHONPATH": folder, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
    if run.returncode not in (0, 1):  # 1: a test failed; else none ran or a crash
        sys.exit(f"{tests}: pytest ended with {run.returncode}\n{run.stdout[-2000:]}")
    return run.returncode == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
