"""Forecasting: from a patient's past 3D scans at irregular times, the scan at any requested time.

sequence, loaders     the data contract, and what is read into it
flow, velocity        Temporal Flow Matching and CRONOS on one velocity network family
baselines, convlstm   what they are measured against
training              for the Ray shell and the loop that all trainings share
predict               one patient: NIfTI, animation, difference overlay
study                 simulated patients whose future is known
"""
