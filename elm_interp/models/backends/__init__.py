"""Back ends: what runs the passes behind `HookedLM`."""
