"""Models where people keep them: folders, Triton repositories, buckets, and their configuration."""
