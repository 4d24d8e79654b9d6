"""DP-SGD with the patient as the unit: clipping, noise, Poisson sampling, and the check that comes before."""
