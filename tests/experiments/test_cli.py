"""Command lines: overrides by type, and one line with the right exit code for every mistake."""

import errno
import subprocess
import sys

import ml_collections
import pytest

from blossom_jax.errors import NonFiniteError, UserError
from experiments import _cli


@pytest.fixture
def config():
    return ml_collections.ConfigDict(
        {
            "seed": 0,
            "train": {"learning_rate": 1e-3, "num_steps": 0, "target": "all"},
            "model": {"causal": True},
            "eval": {"ks": (1, 5)},
        }
    ).lock()


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("seed", "7", 7),
        ("train.num_steps", "-1", -1),
        ("train.learning_rate", "1", 1.0),
        ("train.learning_rate", "3e-4", 3e-4),
        ("train.target", "last", "last"),
        ("model.causal", "False", False),
        ("eval.ks", "10", (10,)),
        ("eval.ks", "(1, 20)", (1, 20)),
        ("eval.ks", "1,20", (1, 20)),
    ],
)
def test_override_reads_the_type_that_stands_there(config, key, text, value):
    _cli.override(config, key, text)
    assert _cli.flatten(config)[key] == value
    assert type(_cli.flatten(config)[key]) is type(value)


@pytest.mark.parametrize(
    ("key", "text", "words"),
    [
        ("train.learning_rat", "1", ["train.learning_rat", "train.learning_rate?"]),
        ("num_steps", "1", ["num_steps", "train.num_steps?"]),
        ("train", "1", ["--config.train;", "--config.train.learning_rate?"]),
        ("train.num_steps", "1.5", ["train.num_steps", "whole number", "'1.5'"]),
        ("train.num_steps", "true", ["whole number", "'true'"]),
        ("train.learning_rate", "fast", ["a number", "'fast'"]),
        ("train.learning_rate", "nan", ["a number", "'nan'"]),
        ("model.causal", "1", ["true or false", "'1'"]),
        ("eval.ks", "one", ["commas", "'one'"]),
    ],
)
def test_override_refuses(config, key, text, words):
    with pytest.raises(UserError) as error:
        _cli.override(config, key, text)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("raised", "code", "printed"),
    [
        (UserError("no such\n file"), 2, "error: no such file\n"),
        (NotImplementedError("no such kernel"), 2, "error: no such kernel\n"),
        (NonFiniteError("loss is nan at step 3"), 1, "error: loss is nan at step 3\n"),
        (MemoryError("9 bytes"), 2, "error: out of memory: 9 bytes\n"),
        (
            RuntimeError("RESOURCE_EXHAUSTED: 9 bytes\nlong dump"),
            2,
            "error: out of memory: RESOURCE_EXHAUSTED: 9 bytes\n",
        ),
        (FileExistsError("there already"), 2, "error: there already\n"),
        (PermissionError(13, "denied", "/x"), 2, "error: /x: denied\n"),
        (FileNotFoundError(2, "no such folder", "/x"), 2, "error: /x: no such folder\n"),
        (OSError(errno.ENOSPC, "disk full", "/x"), 2, "error: /x: disk full\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (KeyboardInterrupt("stopped after step 3"), 130, "stopped after step 3\n"),
    ],
)
def test_expected_errors_become_one_line(capsys, raised, code, printed):
    with pytest.raises(SystemExit) as stop, _cli.errors_to_exit_code():
        raise raised
    assert stop.value.code == code
    assert capsys.readouterr().err == printed


@pytest.mark.parametrize("bug", [RuntimeError("bug"), OSError(errno.EBADF, "bug")])
def test_bugs_keep_their_traceback(bug):
    with pytest.raises(type(bug), match="bug"), _cli.errors_to_exit_code():
        raise bug


def test_a_reader_that_has_read_enough_is_no_bug():
    prints = "print('x\\n' * 10**6)"
    program = f"from experiments import _cli; _cli.run(lambda _: {prints})"
    command = [sys.executable, "-c", program]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(1)
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == (b"", 1)


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "some.py"
    path.write_text(
        "import ml_collections\n"
        "def get_config(arg='2'):\n"
        "    return ml_collections.ConfigDict({'a': {'b': int(arg)}})\n"
    )
    return path


def test_parse_with_config(config_file):
    parser = _cli.ArgumentParser()
    parser.add_argument("--workdir", required=True)
    flags = ["--workdir", "w", "--config.a.b", "-5", f"--config={config_file}:9"]
    arguments = _cli.parse_with_config(parser, flags)
    assert arguments.workdir == "w"
    assert arguments.config.a.b == -5
    with pytest.raises(AttributeError):
        arguments.config.c = 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "required: --workdir, --config"),
        (["--workdir=w", "--config=nowhere.py"], "nowhere.py: there is no such file"),
        (["--workdir=w", "--config={file}:x"], "ValueError: invalid literal"),
        (["--workdir=w", "--config={file}", "--confog.a=1"], "'--confog.a=1'"),
        (["--workdir=w", "--config={file}", "--config.a.b"], "--config.a.b needs a value"),
        (["--workdir=w", "--config={file}", "--work=x"], "'--work=x'"),
        (["--workdir=w", "--config={file}", "extra"], "'extra'"),
    ],
)
def test_parse_with_config_refuses(config_file, flags, words):
    parser = _cli.ArgumentParser()
    parser.add_argument("--workdir", required=True)
    with pytest.raises(UserError, match=words.replace(".", r"\.")):
        _cli.parse_with_config(parser, [flag.format(file=config_file) for flag in flags])


@pytest.mark.parametrize(
    "source", ["", "get_config = 3", "def get_config():\n  return {}", "import nothing_there", "("]
)
def test_a_broken_config_file_is_named(tmp_path, source):
    path = tmp_path / "broken.py"
    path.write_text(source)
    with pytest.raises(UserError, match="broken.py"):
        _cli.load_config(str(path))


def test_a_config_file_without_its_function_is_told_which():
    with pytest.raises(UserError, match="_cli.py: there is no function get_config in it"):
        _cli.load_config(_cli.__file__)
