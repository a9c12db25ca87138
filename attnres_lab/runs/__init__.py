"""Run and sweep folders: the only home of their file names, labels and states."""

from attnres_lab.errors import UserError
from attnres_lab.runs.folder import DONE, Failure, RunFolder, State, Status
from attnres_lab.runs.paths import runs_folder
from attnres_lab.runs.rows import RowReader
from attnres_lab.runs.sweep import Entry, SweepFolder
from attnres_lab.runs.table import planned, table

__all__ = [
    "DONE",
    "Entry",
    "Failure",
    "RowReader",
    "RunFolder",
    "State",
    "Status",
    "SweepFolder",
    "UserError",
    "planned",
    "runs_folder",
    "table",
]
