"""A detector of vehicles in aerial pictures, and how it was trained."""
