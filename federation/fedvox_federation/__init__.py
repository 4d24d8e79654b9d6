"""Federated fine-tuning under differential privacy whose noise follows each clinic's compliance.

Importing this package costs milliseconds; torch and Opacus are imported by the functions that need them.
"""
