"""Exchange with the tools that people edit masks in: 3D Slicer, ITK-SNAP, and MONAI Label's clients.

task.py                a case (image, labels, consensus, findings) as a folder that all of them open
edited.py              an edited mask, checked and back on the grid of its case
difference.py          what the edit changed: voxels, mm³, Dice, a picture
bring_back.py          from a task's folder into the label store
segmentation_nrrd.py   3D Slicer's .seg.nrrd
color_tables.py        names and colors for 3D Slicer and ITK-SNAP
colors.py              one color a structure, everywhere
"""
