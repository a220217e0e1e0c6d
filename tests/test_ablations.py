"""The ablation matrix: its plan and its statistics by hand, and a tiny one on the toy from nothing to its tables, killed once on the way."""

import dataclasses
import hashlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from matplotlib.figure import Figure
from rich.console import Console

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks" / "ablations"
sys.path.append(str(FOLDER))

import cells  # noqa: E402
import figures  # noqa: E402
import plan  # noqa: E402
import results  # noqa: E402

from stare_lit.data.lock import lock_folder  # noqa: E402

SPEC = importlib.util.spec_from_file_location("ablations", FOLDER / "__main__.py")
ablations = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(ablations)
SHIPPED = plan.read_matrix()
SETTINGS = yaml.safe_load(plan.MATRIX.read_text())


def written(folder: Path, **changes) -> Path:
    path = folder / "matrix.yaml"
    path.write_text(yaml.safe_dump(SETTINGS | changes, sort_keys=False))
    return path


# -- the plan ------------------------------------------------------------------------------------------------------------
def test_the_matrix_holds_what_the_paper_compares():
    online = {"ppo", "ppo_dense", "ppo_potential", "stage_bare", "stage_reset", "sta_ppo", "terminal_keep", "progress", "paper_letter", "grpo"}
    online |= {"ppo_blind", "sta_ppo_blind", "sta_ppo_sigmoid"}
    assert online | {"milestones"} == set(SHIPPED.tables["online"])
    assert {"tpo", "sta_tpo", "sta_tpo_without_cost", "tpo_grape"} < set(SHIPPED.tables["offline"])
    assert [cell.name for cell in SHIPPED.chain("ipi")] == ["sft", "sta_tpo", "ipi"]
    for task in ("StackCube-v1", "LiftPegUpright-v1", "Toy-v0"):
        assert online <= set(SHIPPED.variant(task, "state").cells)
    assert set(SHIPPED.variant("LiftPegUpright-v1", "image").cells) == set(SHIPPED.tables["pipeline"])


def test_every_overlay_of_the_ablations_is_a_cell():
    used = {Path(path).name for cell in SHIPPED.cells.values() for path in cell.configs}
    assert used == {path.name for path in (ROOT / "configs" / "ablations").glob("*.yaml")}


def test_the_weak_start_is_the_matrix_but_for_its_start_and_its_cap():
    beside = plan.read_matrix(plan.MATRIX.with_name("weak_start.yaml"))
    ours, theirs = (matrix.variant("StackCube-v1", "state").phases for matrix in (beside, SHIPPED))
    assert dataclasses.replace(ours["imitation"], max_steps=theirs["imitation"].max_steps) == theirs["imitation"]
    caps = {name: getattr(theirs["interaction"], name) for name in ("max_env_steps", "every_env_steps")}
    assert dataclasses.replace(ours["interaction"], **caps) == theirs["interaction"]
    assert all(beside.cells[name] == SHIPPED.cells[name] for name in beside.cells)
    assert (beside.policy, beside.evaluation, beside.test, beside.target) == (SHIPPED.policy, SHIPPED.evaluation, SHIPPED.test, SHIPPED.target)


def test_a_command_holds_cap_seed_and_start(tmp_path):
    variant = SHIPPED.variant("LiftPegUpright-v1", "state")
    words = plan.fit_command(SHIPPED, variant, SHIPPED.cells["ipi"], 2, tmp_path)
    assert f"--model.policy.path={tmp_path}/sta_tpo/last" in words and {"--seed_everything=2", "--data.seed=2", "--data.task=LiftPegUpright-v1"} <= set(words)
    callbacks = json.loads(next(word for word in words if word.startswith("--trainer.callbacks=")).partition("=")[2])
    curve = next(part["init_args"] for part in callbacks if part["class_path"] == "curve.Curve")
    assert curve["every_n_epochs"] is None  # jsonargparse keeps what is not named of the configuration's RolloutEvaluation
    assert curve["max_env_steps"] == variant.phases["interaction"].max_env_steps > 0
    assert plan.fit_command(SHIPPED, variant, SHIPPED.cells["grpo"], 0, tmp_path)[-1] == "--data.decisions_per_env=200"
    imitation = variant.phases["imitation"].max_steps
    assert f"--trainer.max_steps={imitation}" in plan.fit_command(SHIPPED, variant, SHIPPED.cells["sft"], 0, tmp_path)


@pytest.mark.parametrize("variant", SHIPPED.variants, ids=lambda variant: variant.name)
def test_every_command_of_the_matrix_parses(variant, tmp_path, assert_parses):
    """Before a run of hours. The policies below are not there yet: parsing does not ask for them."""
    for name in variant.cells:
        assert_parses(plan.fit_command(SHIPPED, variant, SHIPPED.cells[name], 0, tmp_path))


def test_what_cannot_be_run_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="task='PutSpoonOnTableClothInScene-v1', observation='state': not in the matrix, which has StackCube-v1"):
        SHIPPED.variant("PutSpoonOnTableClothInScene-v1", "state")
    with pytest.raises(ValueError, match="'nothing' is no cell"):
        plan.read_matrix(written(tmp_path, tables={"offline": ["nothing"]}))
    below = {"sft": {"phase": "imitation"}, "ipi": {"phase": "interaction", "after": "ppo"}, "ppo": {"phase": "interaction", "after": "sft"}}
    with pytest.raises(ValueError, match="cells: ipi: after='ppo': must name a cell above it"):
        plan.read_matrix(written(tmp_path, cells=below))
    tasks = {"Toy-v0": {"state": {"imitation": {"configs": ["configs/toy/gone.yaml"], "max_steps": 1}}}}
    some = {"cells": {"sft": {"phase": "imitation"}}, "tables": {"pipeline": ["sft"]}, "claims": [], "comparisons": []}
    with pytest.raises(ValueError, match="Toy-v0: state: configs/toy/gone.yaml is not a file"):
        plan.read_matrix(written(tmp_path, tasks=tasks, **some))
    with pytest.raises(ValueError, match="cell sft needs the phase imitation"):
        plan.read_matrix(written(tmp_path, tasks={"Toy-v0": {"state": {}}}, **some))


@pytest.mark.parametrize(
    ("phase", "message"),
    [
        (
            {"configs": ["configs/toy/sft.yaml"], "max_step": 5},
            "Toy-v0: state: imitation: max_step: no such setting; choose from configs, arguments, max_steps",
        ),
        ({"configs": ["configs/toy/sft.yaml"]}, "Toy-v0: state: imitation: max_steps is missing"),
    ],
)
def test_a_phase_without_its_cap_or_with_a_slip_is_refused(phase, message, tmp_path):
    some = {"cells": {"sft": {"phase": "imitation"}}, "tables": {"pipeline": ["sft"]}, "claims": [], "comparisons": []}
    with pytest.raises(ValueError, match=message):
        plan.read_matrix(written(tmp_path, tasks={"Toy-v0": {"state": {"imitation": phase}}}, **some))


def test_every_seed_is_a_replication_from_the_start(tmp_path):
    variant, sta_tpo = SHIPPED.variant("LiftPegUpright-v1", "state"), SHIPPED.cells["sta_tpo"]
    assert "--data.first_seed=20000" in plan.fit_command(SHIPPED, variant, SHIPPED.cells["sft"], 2, tmp_path)
    assert "--data.rollouts.first_seed=502000" in plan.fit_command(SHIPPED, variant, sta_tpo, 2, tmp_path)
    assert "--settings.first_seed=502000" in plan.rollouts_command(SHIPPED, variant, sta_tpo, 2, tmp_path)


def test_a_cell_whose_configuration_changed_since_it_began_is_not_continued(tmp_path):
    from stare_lit.cli.steps import Step, run_step

    record = tmp_path / "ppo-fit.json"
    record.write_text(json.dumps({"command": ["fit"], "digest": "of before", "finished": True, "seconds": 1.0}))
    with pytest.raises(ValueError, match="ppo: .*ppo-fit.json was begun with other settings"):
        run_step(Step("ppo", ("fit",), record, None, "of now"), Console())
    assert run_step(Step("ppo", ("fit",), record, None, "of before"), Console()) == 1.0


def test_a_cell_on_a_policy_that_is_not_there_is_refused_before_any_work(tmp_path):
    variant, measured = SHIPPED.variant("Toy-v0", "state"), tmp_path / "results"
    cells.check_start(SHIPPED, variant, "ppo", 0, tmp_path / "root", measured)  # its SFT is still to be run
    path = cells.result_path(measured, variant, "sft", 0)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"digest": SHIPPED.digest(variant, "sft"), "policy": hashlib.sha256(b"weights").hexdigest()}))
    with pytest.raises(ValueError, match="Toy-v0-state seed 0: ppo starts from sft, which was measured, but .*another --results and --root"):
        cells.check_start(SHIPPED, variant, "ppo", 0, tmp_path / "root", measured)
    policy = tmp_path / "root" / variant.name / "seed0" / "sft" / SHIPPED.policy
    policy.mkdir(parents=True)
    (policy / "model.safetensors").write_bytes(b"weights")
    cells.check_start(SHIPPED, variant, "ppo", 0, tmp_path / "root", measured)
    (policy / "model.safetensors").write_bytes(b"others")
    with pytest.raises(ValueError, match="is not its policy"):
        cells.check_start(SHIPPED, variant, "ppo", 0, tmp_path / "root", measured)


def test_a_cell_that_was_begun_with_other_settings_does_not_keep_the_others_from_running(tmp_path, monkeypatch):
    variant, run = SHIPPED.variant("Toy-v0", "state"), []

    def run_cell(matrix, variant, name, seed, **_):
        run.append(name)
        if name == "ppo":
            raise ValueError("ppo-fit.json was begun with other settings")

    monkeypatch.setattr(ablations, "run_cell", run_cell)
    monkeypatch.setattr(ablations, "finished", lambda _, __, name, *___: {"policy": ""} if name in run and name != "ppo" else None)
    failures = ablations.run_matrix(SHIPPED, [(variant, 0, ["sft", "ppo", "sta_ppo"])], tmp_path / "root", tmp_path / "results")
    assert run == ["sft", "ppo", "sta_ppo"]
    assert failures == ["Toy-v0-state seed 0: ppo: ppo-fit.json was begun with other settings"]


def test_a_finished_cell_of_other_settings_is_kept(tmp_path):
    variant, results = SHIPPED.variant("Toy-v0", "state"), tmp_path / "results"
    assert cells.finished(SHIPPED, variant, "ppo", 0, results) is None
    path = cells.result_path(results, variant, "ppo", 0)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"digest": SHIPPED.digest(variant, "ppo")}))
    assert cells.finished(SHIPPED, variant, "ppo", 0, results)
    settings = yaml.safe_load(plan.MATRIX.read_text())
    settings["tasks"]["Toy-v0"]["state"]["imitation"]["max_steps"] += 1  # of a cell below it
    changed = plan.read_matrix(written(tmp_path, tasks=settings["tasks"]))
    with pytest.raises(ValueError, match="ppo-seed0.json of Toy-v0-state was measured with other settings"):
        cells.finished(changed, changed.variant("Toy-v0", "state"), "ppo", 0, results)
    assert changed.digest(changed.variant("StackCube-v1", "state"), "ppo") == SHIPPED.digest(SHIPPED.variant("StackCube-v1", "state"), "ppo")


# -- statistics ----------------------------------------------------------------------------------------------------------
def test_interquartile_mean_by_hand():
    assert results.iqm(np.array([0.0, 0.4, 0.6, 1.0])) == pytest.approx(0.5)  # the outer quarters do not count
    assert results.iqm(np.array([0.9, 0.0]), np.array([0.3, 0.5])) == pytest.approx(0.4)
    assert results.iqm(np.array([0.0, 0.3, 0.9])) == pytest.approx(0.4)  # three runs: the mean


def test_runs_are_resampled_within_a_task():
    """Tasks differ, runs do not: there is nothing that could vary. Pooled runs would give a wide interval."""
    assert results.interval(results.iqm, [0.2] * 4, [0.8] * 4) == pytest.approx((0.5, 0.5, 0.5))
    value, low, high = results.interval(results.iqm, [0.2, 0.3, 0.4, 0.6], [0.7, 0.75, 0.8, 0.9])
    assert low < value < high


def test_of_few_runs_each_is_shown_and_no_interval():
    """Two or three resampled runs give their range, which holds the true mean in 50 and 74 % of all cases: that is no 95 %."""
    assert np.isnan(results.interval(results.iqm, [0.2, 0.3, 0.4], [0.6, 0.7, 0.8, 0.9])[1:]).all()
    assert results._success([0.705, 0.705]) == "70.5 (70.5, 70.5)" and results._success([0.7, 0.7, 0.7, 0.7]) == "70.0 [70.0, 70.0] (4)"


def test_a_gain_is_paired_by_seed():
    better = [row("a", seed, success) for seed, success in enumerate((0.8, 0.9, 0.85))]
    worse = [row("b", seed, success) for seed, success in enumerate((0.2, 0.3, 0.1))]
    value, low, high, seeds = results.gain(better, worse[::-1])
    spread = 4.303 * np.std([0.6, 0.6, 0.75], ddof=1) / 3**0.5  # Student's t, two degrees of freedom
    assert (value, low, high, seeds) == (pytest.approx(0.65), pytest.approx(0.65 - spread, abs=1e-3), pytest.approx(0.65 + spread, abs=1e-3), 3)
    close = results.gain([row("a", i, s) for i, s in enumerate((0.50, 0.51, 0.52))], [row("b", i, s) for i, s in enumerate((0.49, 0.47, 0.48))])
    assert close[1] < 0 < close[2]  # three runs do not show three points
    assert results.gain(better, [row("b", 7, 0.1)]) is None  # no seed in common
    assert results.gain(better, [each | {"task": "StackCube-v1"} for each in worse]) is None  # no task in common
    both = results.gain(better + [each | {"observation": "image"} for each in better], worse + [each | {"observation": "image"} for each in worse[:1]])
    assert both[0] == pytest.approx(0.6375) and both[3] == 4  # (0.6 + 0.6 + 0.75 + 0.6) / 4
    one = results.gain([better[0] | {"test_successes": [1, 1, 1, 0]}], [worse[0] | {"test_successes": [0, 0, 1, 0]}])
    assert one[0] == pytest.approx(0.6) and one[1] < 0.5 < one[2] and one[3] == 1  # the interval over its test episodes
    assert np.isnan(results.gain(better[:1], worse)[1])  # of a result that did not keep them
    opposite = [row("a", i, s) for i, s in enumerate((0.71, 0.855, 0.86))], [row("b", i, s) for i, s in enumerate((0.76, 0.86, 0.805))]
    assert results.gain(*opposite)[0] == 0  # -5, -0.5 and +5.5 points: the floats leave -3.7e-17


def test_seeds_that_happen_to_agree_make_no_gain_certain():
    def cell(name: str, seed: int, ones: int) -> dict:
        return row(name, seed, ones / 200) | {"test_successes": [1] * ones + [0] * (200 - ones)}

    value, low, high, _ = results.gain([cell("a", 0, 101), cell("a", 1, 121)], [cell("b", 0, 100), cell("b", 1, 120)])
    assert value == pytest.approx(0.005) and low < 0 < high  # one episode of 200 each
    value, low, high, _ = results.gain([cell("a", 0, 150), cell("a", 1, 170)], [cell("b", 0, 100), cell("b", 1, 120)])
    assert value == pytest.approx(0.25) and 0.2 < low < 0.25 < high < 0.3  # over the episodes of both
    value, low, high, _ = results.gain([cell("a", 0, 150), cell("a", 1, 130)], [cell("b", 0, 100), cell("b", 1, 120)])
    assert value == pytest.approx(0.15) and low < -1 and high > 1  # two seeds, 25 and 5 points: Student's t with one degree of freedom
    assert np.isnan(results.gain([row("a", 0, 0.6), row("a", 1, 0.7)], [row("b", 0, 0.5), row("b", 1, 0.6)])[1])  # neither is known


def test_success_is_what_the_benchmark_of_the_task_counts():
    carrot = row("ppo", 0, 0.9) | {"task": "PutCarrotOnPlateInScene-v1"}
    carrot["test"]["success_at_end"] = {"value": 0.4}
    assert results._test([carrot]) == [0.4] and results._test([row("ppo", 0, 0.9)]) == [0.9]


def row(cell: str, seed: int, success: float, curve=((0, 0.2), (100, 0.95))) -> dict:
    stages = {"reach": {"successes": 8, "trials": 10}, "place": {"successes": 4 + seed, "trials": 8}}
    points = [{"step": at, "env_steps": at, "seconds": 1.0, "success": value} for at, value in curve]
    test = {"success_once": {"value": success}, "stage_funnel": stages}
    about = {"task": "Toy-v0", "observation": "state", "cell": cell, "seed": seed, "commit": "abc", "env_steps": {"own": 100, "all": 300}}
    return about | {"test": test, "curve": points, "seconds": {"fit": 60.0}}


def test_steps_to_the_target_and_the_funnel_by_hand():
    assert results.steps_to(row("ppo", 0, 1.0), 0.9) == 100 and results.steps_to(row("ppo", 0, 1.0), 0.96) == float("inf")
    assert results.funnel([row("ppo", 0, 1.0), row("ppo", 1, 1.0)], ["reach", "place"]) == [0.8, 9 / 16]


def test_tables_and_figures_of_what_is_there(tmp_path):
    for cell, success in {"sft": 0.3, "ppo": 0.6, "sta_ppo": 0.8, "tpo": 0.5, "sta_tpo": 0.4}.items():
        for seed in range(3):
            path = tmp_path / "Toy-v0-state" / f"{cell}-seed{seed}.json"
            path.parent.mkdir(exist_ok=True)
            flat = ((0, 0.2), (100, 0.5))
            found = row(cell, seed, success + 0.01 * seed, *([flat] if cell == "ppo" else []))
            found["test_successes"] = [1] * round(200 * found["test"]["success_once"]["value"]) + [0] * round(200 * (1 - success - 0.01 * seed))
            if cell.endswith("tpo"):
                found["curve"] = [point | {"env_steps": 0} for point in found["curve"]]
            path.write_text(json.dumps(found))
    figures.draw(SHIPPED, tmp_path, Console(width=300))
    text = (tmp_path / "tables.md").read_text()
    lines = {line.split("|")[1].strip(): [part.strip() for part in line.split("|")[2:-1]] for line in text.splitlines() if line.startswith("| ")}
    assert lines["grpo"] == ["-"] * 4 and re.search(r"^\| ppo .*> 100 +\| 300 ", text, re.MULTILINE)  # its own steps, and those of all phases
    claims = [line for line in text.splitlines() if line.startswith("| sta_") and "+" in line or "other way" in line]
    assert any("sta_ppo" in line and "+20.0" in line and line.rstrip("| ").endswith("as the paper") for line in claims)
    assert any("sta_tpo" in line and "-10.0" in line and "the other way" in line for line in claims)
    assert "> 100" in text and "81.0 (80.0, 81.0, 82.0)" in text
    effect = next(line for line in text.splitlines() if re.match(r"\| ppo +\| sft ", line))
    assert re.search(r"\+30\.0 \[\+\d[^\]]+\] \(0\), \+30\.0 \[[^\]]+\] \(1\), \+30\.0 \[[^\]]+\] \(2\) +\| \+30\.0 \[", effect), effect
    assert "mean over seeds [95 %: paired t over seeds" in " ".join(text.split())  # the title keeps its brackets
    assert {path.name for path in tmp_path.glob("*.png")} == {f"{kind}-{name}-Toy-v0-state.png" for kind in ("curves", "funnel") for name in SHIPPED.tables}


def test_over_all_tasks_cells_are_compared_on_the_seeds_that_all_of_them_have():
    toy, cube = (dataclasses.replace(SHIPPED.variants[0], task=task, observation="state") for task in ("Toy-v0", "StackCube-v1"))
    runs = {(toy.name, cell): [row(cell, 0, success), row(cell, 1, 1.0)] for cell, success in {"sft": 0.2, "ppo": 0.4}.items()}
    runs |= {(cube.name, "sft"): [row("sft", seed, 0.6) for seed in (0, 1)], (cube.name, "ppo"): [row("ppo", 0, 0.8)]}  # seed 1 is missing
    runs[toy.name, "tpo"] = [row("tpo", 0, 0.9)]  # on one task only
    rows = list(zip(*(list(column.cells) for column in results.success_table(SHIPPED, "pipeline", [toy, cube], runs).columns), strict=True))
    shown = {cells[0]: cells[-1] for cells in rows}
    assert (shown["sft"], shown["ppo"], shown["tpo"]) == ("60.0 (3)", "75.0 (3)", "-")  # toy seeds 0 and 1, cube seed 0


def test_no_two_cells_of_a_figure_have_one_colour():
    variant = dataclasses.replace(SHIPPED.variants[0], task="Toy-v0", observation="state")
    assert len(SHIPPED.tables["online"]) > 10  # more than a map of ten colours has
    for table in ("online", "pipeline"):  # of these some take no environment steps
        cells = {(variant.name, cell): [row(cell, 0, 0.5)] for cell in SHIPPED.tables[table]}
        axes = Figure().subplots()
        figures.plot_curves(axes, SHIPPED, table, variant, cells)
        drawn = [line.get_color() for line in axes.get_lines()[:-1]]  # the last is the target
        assert len(set(drawn)) == len(drawn) == len(cells)


# -- the machine ---------------------------------------------------------------------------------------------------------
def tiny(folder: Path) -> Path:
    chosen = {name: SETTINGS["cells"][name] for name in ("sft", "ppo", "sta_tpo", "ipi")}
    small = ["--data.num_envs=4", "--data.decisions_per_env=5"]
    toy = SETTINGS["tasks"]["Toy-v0"]["state"]
    phases = {
        "imitation": toy["imitation"] | {"max_steps": 4, "arguments": ["--data.num_episodes=8"]},
        "preference": toy["preference"] | {"max_steps": 2, "rollouts": {"num_states": 8, "num_samples": 6, "num_envs": 24}},
        "interaction": toy["interaction"] | {"max_env_steps": 600, "every_env_steps": 100, "arguments": small},
    }
    rest = {
        "tables": {"pipeline": list(chosen)},
        "claims": [["ipi", "ppo"]],
        "comparisons": [["ppo", "sft"]],
        "seeds": [0],
        "evaluation": {"num_episodes": 4},
        "test": {"num_episodes": 6},
    }
    return written(folder, cells=chosen, tasks={"Toy-v0": {"state": phases}}, **rest)


def free_again(folder: Path) -> None:
    """Waits for the orphan, which is told to end and saves first."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return lock_folder(folder, argument="folder").close()
        except ValueError:
            assert time.monotonic() < deadline
            time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_tiny_matrix_runs_is_killed_goes_on_and_is_drawn(tmp_path):
    folders = ["--matrix", str(tiny(tmp_path)), "--root", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    command, run = [sys.executable, str(FOLDER), *folders], tmp_path / "runs" / "Toy-v0-state" / "seed0"
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not list(run.glob("ppo/checkpoints/*.ckpt")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    stored = tmp_path / "results" / "Toy-v0-state"
    assert [path.name for path in stored.iterdir()] == ["sft-seed0.json"]
    before = (stored / "sft-seed0.json").read_bytes()
    free_again(run / "ppo")
    stale = run / "sft-rollouts" / "Toy-v0-0123456789ab"  # of a policy that is no longer there
    stale.mkdir(parents=True)
    (stale / "metadata.json").write_text("{}")
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (stored / "sft-seed0.json").read_bytes() == before  # finished, so left alone
    found = {path.stem: json.loads(path.read_text()) for path in stored.glob("*.json")}
    assert set(found) == {"sft-seed0", "ppo-seed0", "sta_tpo-seed0", "ipi-seed0"}
    for name, cell in found.items():
        assert cell["env_steps"]["all"] >= cell["env_steps"]["own"] > 0 and cell["seconds"]["all"] >= cell["seconds"]["fit"] > 0, name
        assert cell["test_seeds"] == [2_000_000, 2_000_005] and {"hardware", "versions", "commit", "policy"} <= set(cell) and cell["hardware"]["threads"] == 1
        assert str(tmp_path / "runs") not in json.dumps(cell["commands"])
    ppo, ipi = found["ppo-seed0"], found["ipi-seed0"]
    steps = [point["env_steps"] for point in ppo["curve"]]
    assert steps[0] == 0 and steps == sorted(set(steps)) and 600 <= steps[-1] < 600 + 4 * 5 * 3  # over the kill, to the cap, no further
    assert ipi["env_steps"]["all"] == sum(found[f"{name}-seed0"]["env_steps"]["own"] for name in ("sft", "sta_tpo", "ipi"))
    assert "success in %" in done.stdout and (tmp_path / "results" / "tables.md").is_file()
    assert len(list((tmp_path / "results").glob("*.png"))) == 2
    again = subprocess.run([*command, "--tables"], capture_output=True, text=True, timeout=120)
    assert again.returncode == 0 and "stage funnel" in again.stdout
    refused = subprocess.run([*command, "--task", "PickCube-v1"], capture_output=True, text=True, timeout=120)
    assert refused.returncode == 1 and refused.stderr.startswith("ablations: error: task='PickCube-v1'")
