"""Runs: the folder, its stages, and everything that is made of it."""
