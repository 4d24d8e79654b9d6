"""What is on disk as sequences: one patient's (`load_sequence`), or a folder of patients (`open_sequences`).

table      a folder of NIfTI files with times.csv or series.json: dates, or numbers with a unit
cine       one 4D NIfTI: frames of a gated cycle, or of a fixed interval
bids       sub-*/ses-*/anat/*.nii.gz with sub-*/sub-*_sessions.tsv
acdc       patient*/patient*_4d.nii.gz with Info.cfg
isles      sub-*/…/*_ctp.nii.gz (perfusion CT)
lumiere    Patient-*/week-*/*.nii.gz
"""

from fedvox.forecasting.loaders.cohort import open_sequences
from fedvox.forecasting.loaders.layouts import list_patients, load_sequence

__all__ = ["list_patients", "load_sequence", "open_sequences"]
