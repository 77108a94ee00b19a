"""Scenarios: their types, their files, and what a scenario may name (data centres, devices)."""
