"""Adapters: peft files, and the slots that they are switched on in."""
