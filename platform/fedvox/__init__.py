"""Fedvox: distributed pretraining and federated fine-tuning of 3D medical segmentation models.

Importing this package costs milliseconds: torch, ray and the other heavy libraries are imported by the
modules which need them.
"""

__version__ = "0.1.0"
