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
from collections.abc import Callable
from typing import Any, NoReturn

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

    def work() -> Any:
        module, _, name = task["function"].partition(":")
        try:
            return getattr(importlib.import_module(module), name)(*task["args"])
        except UserError as error:
            print(f"error: {error}")
            return 2

    leave(work)


def leave(work: Callable[[], Any]) -> NoReturn:
    """End this process, a forked one, as an interpreter that did ``work``, which gives the exit
    code or raises.
    """
    code: Any = 1
    try:
        code = work() or 0
    except SystemExit as error:
        code = error.code or 0
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
