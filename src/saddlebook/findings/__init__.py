"""Turns records into tables, tests and verdicts."""
