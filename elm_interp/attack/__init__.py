"""Attacks: ways to bring erased knowledge back."""
