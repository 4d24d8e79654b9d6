"""Sequences whose future is known analytically, for tests and for the study of the methods."""

from fedvox.forecasting.simulation.sequences import SIMULATIONS, TEST, Schedule, Simulated, Target

__all__ = ["SIMULATIONS", "TEST", "Schedule", "Simulated", "Target"]
