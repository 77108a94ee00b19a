"""How requests are executed: queues, batches, instances, and the versions that a node serves."""
