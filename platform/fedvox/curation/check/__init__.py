"""Check: declarative rules on what a label map measures, each finding with its evidence and a picture."""
