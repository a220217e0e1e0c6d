"""`stare doctor`: faults are found and each comes with its way out."""

import json
import subprocess
import sys

import pytest

from stare_lit.cli import doctor as module
from stare_lit.cli.doctor import Check, check_vulkan, doctor


def answer(monkeypatch, *, stdout: str = "", stderr: str = "", code: int = 0, hang: bool = False) -> None:
    """Let every probe answer like this."""

    def run(command, **options):
        if hang:
            raise subprocess.TimeoutExpired(command, options["timeout"])
        return subprocess.CompletedProcess(command, code, stdout, stderr)

    monkeypatch.setattr(module.subprocess, "run", run)


class TestVulkan:
    def test_an_image_is_a_pass(self, monkeypatch):
        answer(monkeypatch, stdout='noise\n{"device": "cpu", "spread": 1.0}\n')
        assert check_vulkan() == Check("Vulkan", "ok", "renders on cpu")

    @pytest.mark.parametrize(
        ("probe", "detail"),
        [
            ({"stdout": '{"device": "cpu", "spread": 0.0}'}, "blank"),
            ({"stderr": "Traceback\nRuntimeError: Failed to find a supported physical device", "code": 1}, "Failed to find a supported physical device"),
            ({"code": -11}, "died with code -11"),
            ({"hang": True}, "no answer within 5 s"),
        ],
        ids=["blank", "no device", "crash", "hang"],
    )
    def test_every_fault_has_a_way_out(self, monkeypatch, probe, detail):
        answer(monkeypatch, **probe)
        check = check_vulkan(timeout=5)
        assert check.status == "fail"
        assert detail in check.detail
        assert "setup_vulkan.sh" in check.way_out

    @pytest.mark.timeout(120)
    def test_the_real_probe_answers(self):
        """Passes with or without a driver: either way there is one clear line."""
        check = check_vulkan(timeout=100)
        assert check.status in ("ok", "fail")
        assert check.detail
        assert "\n" not in check.detail


class TestPackages:
    def test_numpy_2_is_a_fault(self, monkeypatch):
        monkeypatch.setattr(module.metadata, "version", lambda name: "2.1.0" if name == "numpy" else "1.0")
        check = next(check for check in module._packages() if check.name == "numpy")
        assert check.status == "fail"
        assert "numpy<2" in check.way_out

    def test_another_version_is_a_note(self, monkeypatch):
        monkeypatch.setattr(module, "_tested_versions", lambda: {"lightning": "2.6.6"})
        monkeypatch.setattr(module.metadata, "version", lambda name: "1.26.4" if name == "numpy" else "2.7.0+local")
        check = next(check for check in module._packages() if check.name == "lightning")
        assert (check.status, check.detail) == ("note", "2.7.0+local (tested with 2.6.6)")

    def test_a_missing_package_is_a_fault(self, monkeypatch):
        def version(name):
            raise module.metadata.PackageNotFoundError(name)

        monkeypatch.setattr(module.metadata, "version", version)
        assert {(check.status, check.way_out) for check in module._packages()} == {("fail", "make setup")}

    def test_constraints_are_read(self):
        tested = module._tested_versions()
        assert tested["mani_skill"] == "3.0.1"
        assert set(module.PACKAGES) - {"torch"} <= set(tested)


class TestTasks:
    def test_missing_assets_give_the_download_command(self, monkeypatch):
        answer(monkeypatch, stdout=json.dumps({"known": True, "missing": ["bridge_v2_real2sim"], "folder": "assets"}))
        check = module._assets("PutCarrotOnPlateInScene-v1", 5)
        assert check.status == "fail"
        assert "python -m mani_skill.utils.download_asset bridge_v2_real2sim -y" in check.way_out
        assert "MS_ASSET_DIR" in check.way_out

    def test_unknown_task(self, monkeypatch):
        answer(monkeypatch, stdout=json.dumps({"known": False, "missing": [], "folder": "assets"}))
        assert module._assets("PushCub-v1", 5).detail == "ManiSkill knows no such task"

    def test_a_constant_image_is_a_fault(self, monkeypatch):
        answer(monkeypatch, stdout=json.dumps({"shape": [3, 64, 64], "std": 0.0}))
        assert module._camera("PushCube-v1", 5).status == "fail"


def test_little_space_is_a_note():
    assert module._enough("disk", 1, 2 * module.GIB, "free", "make room") == Check("disk", "note", "0.0 GiB free, 2 GiB advised", "make room")


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("note", 0), ("fail", 1)])
def test_exit_code_and_ways_out(monkeypatch, capsys, status, code):
    monkeypatch.setattr(module, "_checks", lambda tasks, timeout: iter([Check("disk", status, "found", "" if status == "ok" else "make room")]))
    assert doctor() == code
    assert ("disk: make room" in capsys.readouterr().out) == (status != "ok")


def test_probe_failure_is_its_last_line(monkeypatch):
    monkeypatch.setattr(module.sys, "executable", sys.executable)
    _, error = module._probe("no such probe", timeout=30)
    assert error == "KeyError: 'no such probe'"
