"""Measures a user's own network from the command line."""
