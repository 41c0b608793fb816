"""Dayfly: the open serverless platform. The package's root holds only the version."""

__version__ = "0.1.0"
