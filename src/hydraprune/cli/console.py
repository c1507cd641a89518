"""Where commands write."""

import sys

from rich.console import Console

# A file or a pipe has no width; lines are not to be broken there.
console = Console(width=None if sys.stdout.isatty() else 200)
