"""Lesions: marked once, segmented, followed through every later scan, measured.

    prompts             points, boxes, scribbles and masks as dense channels; their checks
    prompt_files        LesionLocator's JSON, interactions, NIfTI; coordinate spaces
    prompt_simulation   prompts and corrections as readers would give them
    segmenters          one marked lesion from its prompts: classical peers of a trained network
    patches             the patch around a lesion that a network sees
    network             any registered backbone with prompt channels, as a segmenter; pretrained weights
    walker              where a random walker from the marks would go: what networks are shown, and start from
    examples, pool      lesions to learn from: of stores (store_lesions), simulated (simulated_examples), in memory
    training            a sample a lesion, prompted and corrected by a simulated reader, on one scan or through two
    lesion_training     the training on the shell that all trainings share; config has its settings

    registration        which place of an earlier scan is which place of a later one; the gate against other patients
    events              vanished, appeared, split, merged: linking the lesions of two scans
    observers           what is on a scan, given what is expected there
    track               identities through a series, forward and backward, with corrections

    measure             volume and axial diameters
    recist              RECIST 1.1: response, with the rule that fired
    table, qc_page      the lesion table; a page to look at
    dicom_seg           lesions as DICOM segmentation objects
    series, run         a patient's scans as a file names them; from files to files
    evaluation          Dice, NSD, detection, centroids, retrieval, identity switches; Dice over rounds of corrections

    lesion_types        kinds of lesions that can be painted into a scan
    synthetic           the next visit simulated from one scan with lesion masks, with its exact truth
    synthetic_series    patients with many visits in the MNI152 brain, as a data set

Import the modules themselves: this package imports none of them.
"""
