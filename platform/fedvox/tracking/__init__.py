"""Lesions: marked once, segmented, followed through every later scan, measured.

prompts             points, boxes, scribbles and masks as dense channels; their checks
prompt_files        LesionLocator's JSON, interactions, NIfTI; coordinate spaces
prompt_simulation   prompts and corrections as readers would give them
"""
