"""Measurements of models for `tools/analysis_tools`: speed, memory, accuracy, multiply-adds, score thresholds."""
