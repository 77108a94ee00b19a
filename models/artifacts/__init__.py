"""Model files as the mesh keeps and moves them: blobs, chunks, and the plan of a transfer."""
