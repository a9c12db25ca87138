"""Run and sweep folders: the only home of their file names, labels and states."""
