"""Tiny models of several training frameworks, to convert and optimise."""
