"""Explains saddles without a network: Theorem 1, toy landscapes, escape times."""
