"""The ablation matrix: imitation, preference and interaction in all the forms that the paper compares, over tasks and seeds.

One cell:     python benchmarks/ablations --cell sta_ppo --task Toy-v0 --observation state --seed 0
The matrix:   python benchmarks/ablations --background    (run it again, it goes on where it stopped)
Its tables:   python benchmarks/ablations --tables

Cells, tasks, order and caps are in `matrix.yaml`. A cell is a `stare fit` and a `stare eval` on the test seeds; one that others stand on is run first.
Each finished cell is a file below --results, never overwritten; one that was killed goes on from its last checkpoint. A cell that fails is told at the
end, and those on top of it are left out.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch reads it: weights depend on it to the bit, and cells side by side would fight for cores
sys.path.insert(0, str(Path(__file__).parent))
from cells import check_start, finished, run_cell
from figures import draw
from plan import MATRIX, ROOT, Matrix, Variant, read_matrix

from stare_lit.data.lock import lock_folder
from stare_lit.evaluation.report import console


def chosen(matrix: Matrix, variants: list[Variant], cells: list[str] | None, seeds: list[int]) -> Iterator[tuple[Variant, int, list[str]]]:
    """Task by task for each seed, with the cells that are to be run there, in order. Raises ValueError for cells that are not in the matrix."""
    for name in cells or ():
        if not any(name in variant.cells for variant in variants):
            raise ValueError(f"cell={name!r}: not in the matrix for {', '.join(v.name for v in variants)}; choose from {', '.join(matrix.cells)}")
    for seed in seeds:
        for variant in variants:
            asked = variant.cells if cells is None else [name for name in variant.cells if name in cells]
            below = {cell.name for name in asked for cell in matrix.chain(name)}
            yield variant, seed, [name for name in matrix.cells if name in below]


def run_matrix(matrix: Matrix, plan: list[tuple[Variant, int, list[str]]], root: Path, results: Path) -> list[str]:
    """All cells of ``plan``; one line for each that failed."""
    out, failures = console(), []
    for variant, seed, names in plan:  # before any work: what is there was measured with the same settings, and can be gone on from
        for name in names:
            if finished(matrix, variant, name, seed, results) is None:
                check_start(matrix, variant, name, seed, root, results)
    for variant, seed, names in plan:
        with lock_folder(root / variant.name / f"seed{seed}", argument="root"):
            for name in names:
                after = matrix.cells[name].after
                if after is not None and finished(matrix, variant, after, seed, results) is None:
                    failures.append(f"{variant.name} seed {seed}: {name}: not run, for {after} has failed")
                    continue
                try:
                    run_cell(matrix, variant, name, seed, root=root, results=results, out=out)
                except (RuntimeError, ValueError) as error:  # it failed, or was begun with other settings: the others go on
                    failures.append(f"{variant.name} seed {seed}: {name}: {error}")
                    out.print(failures[-1])
    return failures


def main(argv: list[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="ablations", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", nargs="+", help="all by default")
    parser.add_argument("--task", nargs="+", help="all by default")
    parser.add_argument("--observation", choices=["state", "image"], help="all by default")
    parser.add_argument("--seed", nargs="+", type=int, help="those of the matrix by default")
    parser.add_argument("--tables", action="store_true", help="run nothing, draw what is there")
    parser.add_argument("--background", action="store_true", help="run in a process of its own that outlives this terminal")
    parser.add_argument("--root", type=Path, default=ROOT / "runs" / "ablations", help="run folders")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "ablations", help="a file a cell, tables and figures")
    parser.add_argument("--matrix", type=Path, default=MATRIX)
    given = parser.parse_args(words)
    root, results, matrix = given.root.resolve(), given.results.resolve(), read_matrix(given.matrix)
    tasks = given.task or list(dict.fromkeys(variant.task for variant in matrix.variants))
    known = [variant for variant in matrix.variants if variant.task in tasks and given.observation in (None, variant.observation)]
    for task in tasks:
        if not any(variant.task == task for variant in known):
            matrix.variant(task, given.observation or "state")  # says what there is
    plan = list(chosen(matrix, known, given.cell, given.seed or list(matrix.seeds)))
    if given.tables:
        draw(matrix, results, console())
        return 0
    if given.background:
        root.mkdir(parents=True, exist_ok=True)
        log = root / "matrix.log"
        command = [sys.executable, str(Path(__file__).parent), *(word for word in words if word != "--background")]
        with log.open("a") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, start_new_session=True)
        console().print(f"process {process.pid}, its output in {log}")
        return 0
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    os.chdir(ROOT)  # configurations name files from here
    failures = run_matrix(matrix, plan, root, results)
    draw(matrix, results, console())
    for failure in failures:
        console().print(failure)
    return 1 if failures else 0


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except ValueError as error:
        raise SystemExit(f"ablations: error: {error}") from None
