"""Errors a user can meet. Every message says what, where, expected against got, and what to do next.

Tested in tests/integration/test_outputs_again.py.
"""


class HarpsDistError(Exception):
    """Base of all errors raised on purpose by this package."""


class ConfigError(HarpsDistError):
    """A recipe, a command line or a combination of settings that cannot work."""


class GridError(HarpsDistError):
    """A wavelength grid that is unknown or does not fit the data."""


class SpectrumError(HarpsDistError):
    """A spectrum that cannot be standardised."""


class ArchiveError(HarpsDistError):
    """An archive that is missing, damaged, or was written for something else."""


class ReleaseError(HarpsDistError):
    """A release whose manifest, index or shards are missing, damaged or inconsistent."""


class ExportError(HarpsDistError):
    """An exported model that is missing, damaged, or was made for something else."""


class FetchError(HarpsDistError):
    """An archive on the web that does not answer, or a file of it that does not come whole."""


class OutputError(HarpsDistError):
    """Where a command is to write stands what it did not write, or another process is writing."""


class DiskFullError(HarpsDistError):
    """No space is left where something is to be written."""


class ResumeError(HarpsDistError):
    """A checkpoint that cannot continue the run that was asked for."""


class Interrupted(HarpsDistError):
    """Not a fault: the process was asked to stop, has saved, and wants to be started again with the same command.

    progress: how far it is, for whoever starts it again and again to see that it advances.
    """

    def __init__(self, message: str, progress: str = "it starts over then"):
        super().__init__(message)
        self.progress = progress


class TrainingError(HarpsDistError):
    """A training that cannot go on, such as one whose loss is no longer finite."""


class PromotionError(HarpsDistError):
    """A model that may not become the current one, or nothing to go back to."""
