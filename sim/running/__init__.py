"""Runs: playing a scenario, checking it, comparing policies, shrinking what fails, reporting."""
