"""Evaluation: from two label maps to a statement about methods.

    metrics      `measure`, `measure_labels`: the scores of one case, by metric id
    metric_ids   what an id such as `nsd@2mm/surfel` means
    lesions      lesion-wise detection and panoptic quality
    boundaries, nearest, surfels, surface    the geometry under the surface metrics

    score_table  one metric of many methods on the same cases, complete: nothing missing is dropped
    bootstrap    aggregated scores under resampled patients; BCa intervals
    pairwise     is A better than B: signed-rank tests with Holm's correction, effects, verdicts
    ranking      ranks, their distribution, Friedman's test and critical differences
    subgroups    age, sex, site, manufacturer; worst group; the gap to other hospitals
    power        what a test set of this size can show
    figures      significance maps, rank distributions, critical-difference diagrams

    dice         Dice on tensors, for validation during training

Import the modules themselves: this package imports none of them, so that the tensor part costs no SciPy and the
rest no torch.
"""
