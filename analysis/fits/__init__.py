"""Scaling laws fitted to runs: laws, fits with a certificate, and their intervals."""
