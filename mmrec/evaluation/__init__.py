"""Metrics, the protocol of targets and candidates, baselines and reports."""
