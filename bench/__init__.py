"""Measurements: run by hand or `make bench`, never by the tests."""
