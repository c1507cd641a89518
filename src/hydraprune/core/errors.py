"""Errors that a user can act on: each message names the bad value and the remedy."""


class HydrapruneError(Exception):
    """Base of every error that is the user's to mend; the command line shows its message alone and exits with 2."""


class SpecError(HydrapruneError):
    """A recipe, option or constructor argument that cannot be used."""


class MissingError(SpecError):
    """What is asked for needs a package that is not installed."""


class DataError(HydrapruneError):
    """A data set that is missing, unreadable, or not made of images in [0, 1]."""


class CheckpointError(HydrapruneError):
    """A checkpoint that is missing, truncated, altered, or made for another network."""


class PruningError(HydrapruneError):
    """A network, budget and structure that do not fit together."""


class TrainingError(HydrapruneError):
    """Training that cannot go on: a loss that is not finite, or a disk that is full."""


class EvaluationError(HydrapruneError):
    """An evaluation that would not be worth its figure, such as a model that returns NaN."""


class BusyError(HydrapruneError):
    """A folder in which another process, or another thread of this one, is writing."""
