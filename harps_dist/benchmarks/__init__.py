"""Speeds and costs, measured on the code that users run."""
