"""Every error that Fedvox raises on purpose.

    FedvoxError                 what went wrong, and what to do about it
    ├── InputError              the user's input; exit code 2
    │   ├── ConfigError         a configuration file or override
    │   ├── DataError           an image, a label map, a data set, a manifest
    │   ├── StorageError        a bucket or folder: missing, forbidden, full
    │   │   ├── StorageRefused          no such bucket, no credentials, no permission: waiting does not help
    │   │   └── CheckpointNotWritten    the last checkpoint of a run found no room
    │   ├── CheckpointError     a checkpoint: unreadable, or of another architecture
    │   └── LabelConflict       somebody else decided on the same case meanwhile
    └── RunError                the work itself failed; exit code 1
        ├── DamagedCase         a stored case fails its checksum
        ├── NonFiniteLoss       training diverged
        ├── OutOfMemory         a training step does not fit into memory
        └── Preempted           stopped by a signal after writing a checkpoint; exit code 143

Commands print `message` and `remedy` and leave with `exit_code`; there is no traceback without `--debug`.
"""

from __future__ import annotations


class FedvoxError(Exception):
    """An expected failure, told in words that a user can act on.

    Args:
        message: names the thing (file, field, case), what was found and what was expected.
        remedy: what to do about it, as an instruction.
    """

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message, remedy)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n  -> {self.remedy}" if self.remedy else self.message


class InputError(FedvoxError):
    """The input is at fault, not the program."""

    exit_code = 2


class ConfigError(InputError):
    """A configuration file or a command-line override cannot be used."""


class DataError(InputError):
    """An image, label map, data set or manifest cannot be used.

    Args:
        message: see `FedvoxError`.
        remedy: see `FedvoxError`.
        code: a short stable name of the reason (`shape_mismatch`), for reports and scripts.
        file: path or URI of the file at fault, where it is one file.
    """

    def __init__(self, message: str, remedy: str = "", *, code: str = "data", file: str = "") -> None:
        super().__init__(message, remedy)
        self.code = code
        self.file = file


class StorageError(InputError):
    """A folder or bucket is missing, forbidden or full."""


class StorageRefused(StorageError):
    """The bucket does not exist, or these credentials may not use it: trying again does not help."""


class CheckpointNotWritten(StorageError):
    """The last checkpoint of a run could not be stored; all workers raise it together."""


class CheckpointError(InputError):
    """A checkpoint cannot be read, or belongs to another architecture."""


class LabelConflict(InputError):
    """A decision was taken on a state of a case that is no longer the newest; nothing was written."""


class RunError(FedvoxError):
    """The work failed although its input was accepted."""


class DamagedCase(RunError):
    """A stored case does not match its checksum."""


class NonFiniteLoss(RunError):
    """The loss became NaN or infinite."""


class OutOfMemory(RunError):
    """A training step does not fit into a worker's memory.

    Args:
        message: see `FedvoxError`.
        remedy: see `FedvoxError`.
        restart: whether starting the workers again may help.
    """

    def __init__(self, message: str, remedy: str = "", *, restart: bool = False) -> None:
        super().__init__(message, remedy)
        self.restart = restart


class Preempted(RunError):
    """The run was asked to stop (SIGTERM, spot preemption) and has written a checkpoint."""

    exit_code = 143
