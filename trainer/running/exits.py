"""Exit codes of the programs."""

STOPPED = 130  # exit code after Ctrl-C, as shells have it
