"""What processes tell one another: alone, and as two on this machine."""

import os
import pathlib
import socket
import subprocess
import sys

import pytest

from blossom_jax import hosts
from blossom_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONVERSATION = """
import sys
import jax
from blossom_jax import hosts
from blossom_jax.errors import UserError

address, me = sys.argv[1], int(sys.argv[2])
jax.distributed.initialize(address, 2, me, cluster_detection_method="deactivate")

def refuse():
    if me == 1:
        raise UserError("no such file")
    return "made"

print(hosts.gather({"process": me, "text": "é" * (1 + 9 * me)}))
for ask in (
    lambda: hosts.together(lambda: f"made by {me}")[:4],
    lambda: hosts.together(refuse),
    lambda: hosts.check_same({"seed": 0}),
    lambda: hosts.check_same({"seed": 0, "model.window": 8 + me}),
    lambda: hosts.check_same({"the data's content hash": "ab"[me]}),
):
    try:
        print(ask())
    except UserError as error:
        print("refused:", error)
"""


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_two_processes_act_as_one():
    address = f"127.0.0.1:{free_port()}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CONVERSATION, address, str(me)],
            cwd=ROOT,
            env=os.environ | {"XLA_FLAGS": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for me in range(2)
    ]
    outputs = []
    for process in processes:
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        # Gloo itself says on standard output that it is there.
        outputs.append([line for line in output.splitlines() if not line.startswith("[Gloo]")])
    gathered, made, refused, agreed, config, data = outputs[0]
    assert outputs[1] == outputs[0]
    assert gathered == str([{"process": me, "text": "é" * (1 + 9 * me)} for me in range(2)])
    assert (made, agreed) == ("made", "None")
    assert refused == "refused: process 1 of 2: no such file"
    assert "model.window is 8 in process 0 and 9 in process 1" in config and "seed" not in config
    assert "the data's content hash is 'a' in process 0 and 'b' in process 1" in data


def test_one_process_agrees_with_itself():
    assert hosts.gather({"a": 1}) == [{"a": 1}]
    hosts.check_same({"a": 1})
    assert hosts.together(lambda: 3) == 3
    with pytest.raises(UserError, match="^no such file$"):
        hosts.together(refuse)


def refuse():
    raise UserError("no such file")


def test_keys_that_only_one_side_has_differ():
    found = hosts.differences({"a": 1, "b": 2}, {"b": 2, "c": None, "d": 0}, "there", "here")
    assert found == "a is 1 there and None here; d is None there and 0 here"
