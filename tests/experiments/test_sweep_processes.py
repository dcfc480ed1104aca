"""Commands side by side: order, failures, GPUs and signals."""

import signal
import sys
import textwrap
import threading

import pytest

from experiments.sweep import processes


def python(code):
    return [sys.executable, "-c", textwrap.dedent(code)]


def test_a_command_that_fails_stops_no_other(capsys):
    codes = processes.run_all(
        {"a": python("raise SystemExit(3)"), "b": python(""), "c": python("")}, jobs=2
    )
    assert codes == {"a": 3, "b": 0, "c": 0}
    assert "a: ended with exit code 3" in capsys.readouterr().err


def test_a_command_waits_for_what_it_comes_after(capsys, tmp_path):
    def touch(name, code=0):
        return python(
            f"import pathlib; pathlib.Path({str(tmp_path)!r}, {name!r}).touch(); exit({code})"
        )

    needs_both = python(
        f"""
        import pathlib
        assert all(pathlib.Path({str(tmp_path)!r}, name).exists() for name in "ab")
        """
    )
    commands = {"row": needs_both, "other": touch("other")}
    commands |= {"a": touch("a"), "b": touch("b"), "c": touch("c", 4), "d": touch("d")}
    after = {"row": ["a", "b"], "other": ["c", "d"]}
    codes = processes.run_all(commands, jobs=2, after=after)
    assert codes == {"row": 0, "other": 4, "a": 0, "b": 0, "c": 4, "d": 0}
    assert not (tmp_path / "other").exists()
    assert "other: not started, since c failed" in capsys.readouterr().err


def test_commands_are_spread_over_gpus(tmp_path):
    def note(name, until=None):
        return python(
            f"""
            import os, pathlib, time
            folder = pathlib.Path({str(tmp_path)!r})
            (folder / {name!r}).write_text(os.environ["CUDA_VISIBLE_DEVICES"])
            while not (folder / {(until or name)!r}).exists():
                time.sleep(0.01)
            """
        )

    commands = {"a": note("a", until="d"), "b": note("b"), "c": note("c"), "d": note("d")}
    assert set(processes.run_all(commands, jobs=2, gpus=["3", "5"]).values()) == {0}
    assert {name: (tmp_path / name).read_text() for name in commands} == {
        "a": "3",  # which is taken for as long as all others run
        **dict.fromkeys("bcd", "5"),
    }


# As a run that saves first, one that is still loading, and one that was ending anyway.
@pytest.mark.parametrize("code", [processes.STOPPED, None, 0])
def test_sigterm_goes_to_what_runs_and_nothing_else_begins(tmp_path, code):
    handles = "" if code is None else f"signal.signal(signal.SIGTERM, lambda *_: sys.exit({code}))"
    waits = python(
        f"""
        import pathlib, signal, sys, time
        {handles}
        pathlib.Path({str(tmp_path / "begun")!r}).touch()
        time.sleep(60)
        """
    )

    def stop():
        while not (tmp_path / "begun").exists():
            threading.Event().wait(0.01)
        signal.raise_signal(signal.SIGTERM)

    threading.Thread(target=stop).start()
    codes = processes.run_all({"a": waits, "b": waits}, jobs=1, after={"b": ["a"]})
    assert codes == {"a": code if code == 0 else processes.STOPPED, "b": processes.STOPPED}
