"""`stare`: dispatch, messages and exit codes, standard input, one folder per run."""

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml
from jsonargparse import Namespace

from stare_lit import __version__
from stare_lit.cli import main as front
from stare_lit.cli.run_folder import RUN_DIR_VARIABLE, choose_run_dir, fill_run_dir, next_config_path

ROOT = Path(__file__).parents[1]
BORING = {
    "seed_everything": 1,
    "model": {"class_path": "lightning.pytorch.demos.boring_classes.BoringModel"},
    "data": {"class_path": "lightning.pytorch.demos.boring_classes.BoringDataModule"},
    "trainer": {
        "accelerator": "cpu",
        "max_steps": 2,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "."}},
        "callbacks": [{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"save_last": True}}],
    },
}


def stare(*args: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    """Run `stare` in a process of its own, with something on standard input that nobody may read."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    env = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run([sys.executable, "-m", "stare_lit", *args], cwd=cwd, env=env, input="y\n", capture_output=True, text=True, timeout=120)


@pytest.fixture
def in_process(monkeypatch):
    """`front.main` in this process: exit code for arguments; the environment is put back and standard input stays pytest's."""
    monkeypatch.setattr(front, "_close_stdin", lambda: None)
    monkeypatch.setattr(front, "_set_environment", lambda: None)
    monkeypatch.delenv("STARE_DEBUG", raising=False)

    def run(*args: str) -> int:
        with pytest.raises(SystemExit) as exit_info:
            front.main(list(args))
        return exit_info.value.code

    return run


@pytest.fixture
def run_root(tmp_path, monkeypatch):
    """An empty working directory, with the environment variable of the run folder put back afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(RUN_DIR_VARIABLE, "")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    return tmp_path


class TestDispatch:
    def test_help_lists_every_command_and_imports_nothing_heavy(self):
        code = (
            "import sys; from stare_lit.cli import main as m\n"
            "try: m.main(['--help'])\n"
            "except SystemExit: sys.exit(bool({'torch', 'jsonargparse'} & set(sys.modules)))"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0
        assert all(name in done.stdout for name in [*front.PHASE_COMMANDS, *front.FUNCTION_COMMANDS])

    def test_help_is_fast(self):
        def seconds() -> float:
            start = time.perf_counter()
            stare("--help")
            return time.perf_counter() - start

        assert min(seconds() for _ in range(3)) < 0.5

    def test_no_arguments_is_help(self, in_process, capsys):
        assert in_process("--help") == 0
        assert "usage: stare <command>" in capsys.readouterr().out

    def test_version(self, in_process, capsys):
        assert in_process("--version") == 0
        assert capsys.readouterr().out.strip() == f"stare_lit {__version__}"

    @pytest.mark.parametrize(("word", "suggestion"), [("fitt", "did you mean 'fit'?"), ("rollout", "did you mean 'rollouts'?"), ("xyz", "known: fit")])
    def test_unknown_command(self, in_process, capsys, word, suggestion):
        assert in_process(word) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert f"unknown command {word!r}" in error
        assert suggestion in error

    def test_predict_is_no_command(self, in_process):
        assert in_process("predict") == 2


def ours() -> None:
    raise ValueError("task='Nope' is unknown")


class TestErrors:
    """Errors that this package raises are one message; anything else keeps its traceback."""

    @staticmethod
    def command(monkeypatch, function):
        monkeypatch.setattr(front, "_load", lambda command: lambda args: function())

    def test_our_error_is_one_message(self, in_process, monkeypatch, capsys):
        self.command(monkeypatch, lambda: choose_run_dir(None, "last", name="x", held=ExitStack()))
        assert in_process("eval") == 2
        assert capsys.readouterr().err.startswith("stare: error: ckpt_path='last' needs the run to continue")

    def test_debug_shows_the_traceback(self, monkeypatch):
        self.command(monkeypatch, lambda: choose_run_dir(None, "last", name="x", held=ExitStack()))
        monkeypatch.setattr(front, "_set_environment", lambda: None)
        monkeypatch.setenv("STARE_DEBUG", "1")
        with pytest.raises(ValueError, match="needs the run to continue"):
            front.main(["eval"])

    def test_other_errors_keep_their_traceback(self, monkeypatch):
        self.command(monkeypatch, ours)  # raised in this file, which is not the package
        monkeypatch.setattr(front, "_close_stdin", lambda: None)
        monkeypatch.setattr(front, "_set_environment", lambda: None)
        with pytest.raises(ValueError, match="Nope"):
            front.main(["eval"])

    def test_lightnings_word_for_a_wrong_setting(self, in_process, run_root, capsys):
        Path("boring.yaml").write_text(yaml.safe_dump(BORING))
        assert in_process("fit", "--config", "boring.yaml", "--trainer.max_time=half an hour") == front.EXIT_USAGE
        assert "not a valid duration" in capsys.readouterr().err

    def test_our_error_inside_a_class_that_the_parser_makes(self, in_process, run_root, capsys):
        """jsonargparse wraps it in one about union types, which helps nobody."""
        policy = {"class_path": "stare_lit.models.vla.VLAPolicy.from_pretrained", "init_args": {"path": "nowhere"}}
        model = {"class_path": "stare_lit.algorithms.sta_tpo.StaTPOModule", "init_args": {"policy": policy}}
        Path("config.yaml").write_text(yaml.safe_dump(BORING | {"model": model}))
        assert in_process("fit", "--config", "config.yaml") == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith("stare: error: path='nowhere': no such folder")

    def test_interrupt_is_130(self, in_process, monkeypatch, capsys):
        def interrupt() -> None:
            raise KeyboardInterrupt("stare fit ...")

        self.command(monkeypatch, interrupt)
        assert in_process("eval") == 130
        assert capsys.readouterr().err == "stare: interrupted; go on with: stare fit ...\n"

    @pytest.mark.parametrize(("result", "code"), [(None, 0), (1, 1), (0, 0), ("text", 0), (True, 0)])
    def test_exit_code_is_the_int_that_a_command_returns(self, in_process, monkeypatch, result, code):
        self.command(monkeypatch, lambda: result)
        assert in_process("eval") == code


def test_standard_input_is_never_read():
    code = (
        "import subprocess, sys\nfrom stare_lit.cli import main as m\n"
        "def ask():\n"
        "    assert subprocess.run(['cat'], capture_output=True).stdout == b''\n"
        "    input('(y|n): ')\n"
        "m._load = lambda command: lambda args: ask()\nm.main(['eval'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, input="y\n" * 9, capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert "asked a question on standard input" in done.stderr


class TestEnvironment:
    def test_defaults_ask_for_nothing(self, monkeypatch):
        for name in (*front.ENVIRONMENT, "WANDB_MODE", "WANDB_API_KEY"):
            monkeypatch.setenv(name, "")  # so that monkeypatch removes what gets set
            monkeypatch.delenv(name)
        front._set_environment()
        assert os.environ["WANDB_MODE"] == "offline"
        assert os.environ["HF_HUB_OFFLINE"] == "1"

    def test_what_the_user_set_stays(self, monkeypatch):
        monkeypatch.setenv("WANDB_MODE", "online")
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        front._set_environment()
        assert (os.environ["WANDB_MODE"], os.environ["HF_HUB_OFFLINE"]) == ("online", "0")


@pytest.fixture
def held():
    """Keeps the locks of run folders until the test ends."""
    with ExitStack() as stack:
        yield stack


class TestRunFolder:
    def test_new_runs_get_new_numbers(self, run_root, held):
        first = choose_run_dir(None, None, name="sft", held=held)
        assert first == Path("runs/sft/001")
        with ExitStack() as other:
            assert choose_run_dir(None, None, name="sft", held=other) == Path("runs/sft/002")  # the first is being begun
        held.close()
        assert choose_run_dir(None, None, name="sft", held=held) == first  # still empty
        held.close()
        (first / "config.yaml").touch()
        assert choose_run_dir(None, None, name="sft", held=held) == Path("runs/sft/002")

    def test_a_taken_folder_is_refused_or_continued(self, run_root, held):
        folder = Path("runs/mine")
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "checkpoints" / "last.ckpt").touch()
        with pytest.raises(ValueError, match="already holds a run"):
            choose_run_dir("runs/mine", None, name="sft", held=held)
        Path("other.ckpt").touch()
        with pytest.raises(ValueError, match="already holds a run"):
            choose_run_dir("runs/mine", "other.ckpt", name="sft", held=held)
        assert choose_run_dir("runs/mine", "last", name="sft", held=held) == folder
        with pytest.raises(ValueError, match=rf"run_dir='runs/mine': another process \(process {os.getpid()} on .*\) is writing to it"):
            choose_run_dir("runs/mine", "last", name="sft", held=held)
        held.close()
        assert choose_run_dir("runs/mine", "runs/mine/checkpoints/last.ckpt", name="sft", held=held) == folder

    def test_nothing_to_continue(self, run_root, held):
        with pytest.raises(ValueError, match="there is no run in runs/mine"):
            choose_run_dir("runs/mine", "last", name="sft", held=held)

    def test_other_processes_of_a_run_follow_the_first(self, run_root, monkeypatch, held):
        first = choose_run_dir(None, None, name="sft", held=held)
        (first / "config.yaml").touch()
        monkeypatch.setenv("LOCAL_RANK", "1")
        assert choose_run_dir(None, None, name="sft", held=held) == first
        monkeypatch.delenv(RUN_DIR_VARIABLE)
        with pytest.raises(ValueError, match="give --run_dir"):
            choose_run_dir(None, None, name="sft", held=held)

    def test_only_open_folders_are_filled(self):
        logger = Namespace(class_path="a.CSVLogger", init_args=Namespace(save_dir="."))
        checkpoint = Namespace(class_path="a.ModelCheckpoint", init_args=Namespace(dirpath=None))
        own = Namespace(class_path="a.ModelCheckpoint", init_args=Namespace(dirpath="elsewhere"))
        trainer = Namespace(default_root_dir=None, logger=logger, callbacks=[checkpoint, own])
        fill_run_dir(trainer, Path("run"))
        assert (trainer.default_root_dir, logger.init_args.save_dir) == ("run", "run/logs")
        assert (checkpoint.init_args.dirpath, own.init_args.dirpath) == ("run/checkpoints", "elsewhere")

    def test_config_paths_are_numbered(self, tmp_path):
        assert next_config_path(tmp_path).name == "config.yaml"
        (tmp_path / "config.yaml").touch()
        assert next_config_path(tmp_path).name == "config_2.yaml"


class TestFit:
    """The whole way through LightningCLI, with Lightning's smallest model."""

    @pytest.fixture
    def config(self, run_root) -> str:
        (run_root / "boring.yaml").write_text(yaml.safe_dump(BORING))
        return "boring.yaml"

    def test_fit_refuse_continue_test(self, in_process, config, capsys):
        assert in_process("fit", "--config", config) == 0
        folder = Path("runs/boring_classes/001")
        assert f"stare test --config {folder}/config.yaml" in capsys.readouterr().out
        assert (folder / "checkpoints" / "last.ckpt").is_file()
        saved = yaml.safe_load((folder / "config.yaml").read_text())
        assert saved["run_dir"] is None  # so that the saved configuration starts a new run
        assert saved["trainer"]["default_root_dir"] is None

        assert in_process("fit", "--config", config, "--run_dir", str(folder)) == 2
        assert "already holds a run" in capsys.readouterr().err
        assert in_process("fit", "--config", config, "--run_dir", str(folder), "--ckpt_path", "last", "--trainer.max_steps=3") == 0
        assert yaml.safe_load((folder / "config_2.yaml").read_text())["trainer"]["max_steps"] == 3
        assert in_process("test", "--config", str(folder / "config.yaml"), "--ckpt_path", str(folder / "checkpoints" / "last.ckpt")) == 0
        assert (Path("runs/boring_classes-test/001") / "config.yaml").is_file()

    @pytest.mark.parametrize(
        ("content", "message"), [(None, "is not a file"), (b"text", "cannot be read as a checkpoint"), ("tensors", "is no Lightning checkpoint")]
    )
    def test_bad_checkpoint(self, in_process, config, capsys, content, message):
        import torch

        path = Path("bad.ckpt")
        if content == "tensors":
            torch.save({"weight": torch.zeros(1)}, path)
        elif content is not None:
            path.write_bytes(content)
        assert in_process("test", "--config", config, "--ckpt_path", "bad.ckpt") == 2
        assert message in capsys.readouterr().err
        assert not Path("runs").exists()

    def test_print_config(self, in_process, config, capsys):
        assert in_process("fit", "--config", config, "--trainer.max_steps=7", "--print_config") == 0
        assert yaml.safe_load(capsys.readouterr().out)["trainer"]["max_steps"] == 7

    def test_a_misspelt_setting_is_named(self, in_process, config, capsys):
        assert in_process("fit", "--config", config, "--trainer.max_stepz=7") == 2
        error = capsys.readouterr().err
        assert "max_stepz" in error
        assert error.count("\n") <= 3

    def test_ctrl_c_says_how_to_go_on(self, config, run_root):
        env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "stare_lit", "fit", "--config", config, "--trainer.max_steps=-1", "--trainer.max_epochs=-1"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=env) as process:
            deadline = time.monotonic() + 90
            while not Path("runs/boring_classes/001/checkpoints").is_dir() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.1)
            process.send_signal(signal.SIGINT)
            error = process.communicate(timeout=60)[1]
        assert process.returncode == 130, error
        assert "go on with: stare fit --config runs/boring_classes/001/config.yaml --run_dir runs/boring_classes/001 --ckpt_path last" in error
