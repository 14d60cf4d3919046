"""Keeps files whole: writing, digests, locks, checkpoints, and whence results come."""
