"""State that every node holds a copy of: what each owner says, and what the mesh is to do."""
