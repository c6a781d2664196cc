"""Measurements and verdicts: metrics, statistics, gates, report. Knows nothing of how a variant was made."""
