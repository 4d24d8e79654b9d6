"""Evaluation: from two label maps to a statement about methods.

    metrics      `measure`, `measure_labels`: the scores of one case, by metric id
    metric_ids   what an id such as `nsd@2mm/surfel` means
    lesions      lesion-wise detection and panoptic quality
    boundaries, nearest, surfels, surface    the geometry under the surface metrics
    dice         Dice on tensors, for validation during training

Import the modules themselves: this package imports none of them, so that the tensor part costs no SciPy and the
rest no torch.
"""
