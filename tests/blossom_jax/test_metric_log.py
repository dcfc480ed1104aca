"""The metrics file after kills at any byte, and what the terminal shows."""

import io
import json

import pytest

from blossom_jax import metric_log
from blossom_jax.errors import NonFiniteError, UserError
from blossom_jax.metric_log import MetricLog, Terminal, clock


def write_run(workdir, steps, resume_at=0):
    log = MetricLog(workdir, resume_at)
    for step in steps:
        log.write(step, "train", {"loss": 1 / step})
        if step % 2 == 0:
            log.write(step, "valid", {"full/ndcg@10": step / 3})
    log.close()


def test_lines_hold_step_split_and_values(tmp_path):
    write_run(tmp_path, [1, 2])
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 1, "split": "train", "loss": 1.0},
        {"step": 2, "split": "train", "loss": 0.5},
        {"step": 2, "split": "valid", "full/ndcg@10": 2 / 3},
    ]
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_number_that_is_not_finite_is_refused(tmp_path):
    log = MetricLog(tmp_path, 0)
    with pytest.raises(NonFiniteError, match="valid loss is nan at step 7; earlier checkpoints"):
        log.write(7, "valid", {"full/ndcg@10": 0.1, "loss": float("nan")})
    assert not (tmp_path / "metrics.jsonl").read_text()


def test_a_line_is_on_disk_as_soon_as_it_is_written(tmp_path):
    log = MetricLog(tmp_path, 0)
    log.write(1, "train", {"loss": 2.0})
    assert (tmp_path / "metrics.jsonl").read_text().endswith("2.0}\n")


@pytest.mark.parametrize("cut", [0, 1, 30, -1])
def test_a_run_killed_at_any_byte_and_resumed_leaves_the_same_file(tmp_path, cut):
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    write_run(tmp_path / "whole", range(1, 7))
    write_run(tmp_path / "killed", range(1, 6))
    path = tmp_path / "killed" / "metrics.jsonl"
    after_step_2 = len("".join(path.read_text().splitlines(keepends=True)[:3]))
    content = path.read_bytes()
    path.write_bytes(content[: after_step_2 + cut] if cut >= 0 else content[:cut])
    write_run(tmp_path / "killed", range(3, 7), resume_at=2)
    assert path.read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("line", [b"{\n", b"\xff\n", b"7\n", b"{}\n"])
def test_a_damaged_line_is_named(tmp_path, line):
    write_run(tmp_path, [1, 2])
    path = tmp_path / "metrics.jsonl"
    first, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([first, line, *rest]))
    with pytest.raises(UserError, match=r"metrics.jsonl:2 is damaged: delete that line"):
        MetricLog(tmp_path, 2)


def test_a_test_line_is_dropped_since_the_test_will_come_again(tmp_path):
    write_run(tmp_path, [1, 2])
    before = (tmp_path / "metrics.jsonl").read_bytes()
    log = MetricLog(tmp_path, 2)
    log.write(2, "test", {"full/ndcg@10": 0.5})
    log.close()
    MetricLog(tmp_path, 2).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_process_that_does_not_write_leaves_nothing(tmp_path):
    log = MetricLog(tmp_path, 0, writes=False)
    log.write(1, "train", {"loss": 1.0})
    log.close()
    assert not list(tmp_path.iterdir())


def test_starting_anew_empties_the_file(tmp_path):
    write_run(tmp_path, [1, 2])
    MetricLog(tmp_path, 0).close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


@pytest.fixture
def time_passes(monkeypatch):
    """Makes every look at the clock find it one second later."""
    seconds = iter(range(1000))
    monkeypatch.setattr(metric_log.time, "monotonic", lambda: float(next(seconds)))


def test_plain_lines_tell_rate_and_time_left(time_passes):
    stream = io.StringIO()
    terminal = Terminal(100, 300, stream)
    terminal.report(150, 6.5, 4000.0)  # one second for 50 steps
    with terminal.paused():
        terminal.say("evaluated")
    terminal.report(200, 6.25, 4000.0)  # two without the pause, four in all
    assert stream.getvalue().splitlines() == [
        "step 150/300  loss 6.5000  4,000 tokens/s  0:00:03 left",
        "evaluated",
        "step 200/300  loss 6.2500  2,000 tokens/s  0:00:04 left",
    ]


def test_a_terminal_gets_a_bar():
    class Screen(io.StringIO):
        def isatty(self):
            return True

    stream = Screen()
    terminal = Terminal(0, 10, stream)
    terminal.advance()
    terminal.report(1, 6.5, 10.0)
    terminal.say("evaluated")
    terminal.close()
    assert "loss 6.5000" in stream.getvalue()
    assert "tokens/s" in stream.getvalue()
    assert "1/10" in stream.getvalue()
    assert "evaluated\n" in stream.getvalue()


def test_clock():
    assert [clock(s) for s in (0, 59.6, 3725)] == ["0:00:00", "0:01:00", "1:02:05"]
