"""One rank of a pool of workers: do jobs one after the other, so that imports and the process group are paid for once.

Started under torchrun with the path of a Unix socket. A job is a line of JSON: {"function": "module:name", "job": {…}};
every rank calls the function with the job. The answer is a line {"result": …} or {"error": traceback}.
"""

import importlib
import json
import os
import socket
import sys
import traceback

from pipeline.records.processes import die_with_parent


def answer(request: dict) -> dict:
    """What the function returned, or why it did not."""
    module, _, name = request["function"].partition(":")
    try:
        return {"result": getattr(importlib.import_module(module), name)(request["job"])}
    except Exception:
        return {"error": traceback.format_exc()}


def main(address: str) -> None:
    """Answer until the other side hangs up."""
    die_with_parent()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        with connection.makefile("rw", encoding="utf-8") as lines:
            print(json.dumps({"rank": int(os.environ["RANK"])}), file=lines, flush=True)
            for line in lines:
                print(json.dumps(answer(json.loads(line))), file=lines, flush=True)
    os._exit(0)  # gloo's threads may abort the interpreter's teardown


if __name__ == "__main__":
    main(sys.argv[1])
