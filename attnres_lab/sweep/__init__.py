"""Sweeps: a plan of trials that is priced before it runs and exact after any crash. Nothing heavy
is imported here.
"""
