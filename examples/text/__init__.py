"""Text models: one that writes, letter by letter, and one that turns sentences into vectors."""
