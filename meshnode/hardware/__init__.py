"""What this machine is, how busy it is, and at which addresses others may reach it."""
