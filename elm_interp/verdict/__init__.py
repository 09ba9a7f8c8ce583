"""Verdict: calibration of metrics, evidence, and the rules that name what happened to a concept."""
