"""Models that come with meshnode, to try it with and to test it on."""
