"""Verdict: calibration of metrics, evidence, and the rules that say what happened to a concept."""
