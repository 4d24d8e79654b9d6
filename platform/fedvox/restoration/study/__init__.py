"""Held-out slices of the MNI152 T1, restored by every solver, prior and way of covering: the study."""
