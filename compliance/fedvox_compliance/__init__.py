"""Compliance questionnaire, scoring and attestation against HIPAA, GDPR and ISO/IEC 27001:2022."""

__version__ = "0.1.0"
