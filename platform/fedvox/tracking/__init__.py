"""Lesions: marked once, segmented, followed through every later scan, measured.

prompts             points, boxes, scribbles and masks as dense channels; their checks
prompt_files        LesionLocator's JSON, interactions, NIfTI; coordinate spaces
prompt_simulation   prompts and corrections as readers would give them
    lesion_types        kinds of lesions that can be painted into a scan
    synthetic           the next visit simulated from one scan with lesion masks, with its exact truth
    synthetic_series    patients with many visits in the MNI152 brain, as a data set
"""
