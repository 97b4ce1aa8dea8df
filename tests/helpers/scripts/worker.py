"""One rank of a pool of workers: do jobs one after the other, so that imports and the process group are paid for once.

Started in the environment of a launcher, with the path of a Unix socket. A job is a line of JSON: {"function":
"module:name", "job": {…}}; every rank calls the function with the job. The answer is a line {"result": …} or {"error":
traceback}.
"""

import importlib
import json
import os
import socket
import traceback
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from pipeline.records.processes import die_with_parent
from pipeline.training.compilation import restore_linear
from tests.helpers.processes import afresh


def answer(request: dict) -> dict:
    """What the function returned, or why it did not. A script has a process of its own, and so torch's own linear
    function, for which an engine of ZeRO-3 leaves DeepSpeed's behind: in bf16 its gradients are rounded otherwise."""
    restore_linear()
    module, _, name = request["function"].partition(":")
    try:
        return {"result": getattr(importlib.import_module(module), name)(request["job"])}
    except Exception:
        return {"error": traceback.format_exc()}


def begin(address: str, environment: Mapping[str, str], said: Path) -> NoReturn:
    """To be called in a fork of pytest: answer until the other side hangs up. said: the file that takes its output."""
    die_with_parent()
    os.environ.clear()
    os.environ.update(environment)
    output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    afresh()
    warnings.simplefilter("ignore")
    serve(address)
    os._exit(0)  # gloo's threads may abort the interpreter's teardown


def serve(address: str) -> None:
    """Say which rank this is, and answer every line."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        with connection.makefile("rw", encoding="utf-8") as lines:
            print(json.dumps({"rank": int(os.environ["RANK"])}), file=lines, flush=True)
            for line in lines:
                print(json.dumps(answer(json.loads(line))), file=lines, flush=True)
