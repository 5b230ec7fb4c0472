"""Save, restore and verify the state of a training run. No callback lives in here."""

from tf_tricks.checkpoints.snapshot import Snapshot

__all__ = ["Snapshot"]
