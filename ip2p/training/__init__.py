"""Trains an instruction-following editor on a dataset of pairs (paper, section 3.2).

This package's surface imports no torch: `launch` runs the training in a child process through `accelerate launch`.
"""

from __future__ import annotations

from ip2p.training.fingerprints import training_fingerprint
from ip2p.training.launching import launch, launch_command, training_state

__all__ = ["launch", "launch_command", "training_fingerprint", "training_state"]
