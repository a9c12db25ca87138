"""Scores of trained models on benchmarks: ``nano`` on the run's own validation text, and any task
of lm_eval (the extra ``eval``).
"""
