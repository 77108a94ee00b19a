"""The scenarios that come with meshnode (`meshnode sim list`); docs/scenarios.md tells of them."""
