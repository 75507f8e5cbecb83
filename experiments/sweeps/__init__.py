"""Sweeps over settings: plan, run, folder, report."""
