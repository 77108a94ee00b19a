"""Models that are compiled and measured ahead of time, so that a node starts without doing it again."""
