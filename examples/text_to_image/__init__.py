"""A small generator of pictures from words, and how it was trained."""
