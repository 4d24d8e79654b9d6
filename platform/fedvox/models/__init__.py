"""3D segmentation backbones: one file per architecture, built by name in `registry`."""
