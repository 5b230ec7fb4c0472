"""Save, restore and verify the state of a training run. No callback lives in here."""

from tf_tricks.checkpoints.file_format import DamagedCheckpoint
from tf_tricks.checkpoints.reports import Description, RestoreReport
from tf_tricks.checkpoints.restoring import restore
from tf_tricks.checkpoints.saving import describe, latest, save, verify
from tf_tricks.checkpoints.snapshot import Snapshot

__all__ = [
    "DamagedCheckpoint",
    "Description",
    "RestoreReport",
    "Snapshot",
    "describe",
    "latest",
    "restore",
    "save",
    "verify",
]
