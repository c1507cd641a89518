"""The command line."""

from hydraprune.cli.main import main

__all__ = ["main"]
