"""Measures the curvature of a class's loss, with error bounds."""
