"""An application that survives the loss of a region, and the test that says so."""
