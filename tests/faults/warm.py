"""``python -m tests.faults.warm MODULES``: imports them, then runs what standard input names, each
in a forked child; answers with its exit code.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import traceback
from typing import Any

SECONDS = 240  # that a call may take


def main() -> None:
    for module in sys.argv[1:]:
        importlib.import_module(module)
    for line in sys.stdin:
        task = json.loads(line)
        child = os.fork()
        if not child:
            _run(task)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _run(task: dict[str, Any]) -> None:
    signal.alarm(SECONDS)
    log = os.open(task["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for file in (1, 2):
        os.dup2(log, file)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    from attnres_lab.errors import UserError

    module, _, name = task["function"].partition(":")
    try:
        code = getattr(importlib.import_module(module), name)(*task["args"]) or 0
    except UserError as error:
        print(f"error: {error}")
        code = 2
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
