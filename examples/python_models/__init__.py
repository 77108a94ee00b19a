"""Two models in Python: a pipeline with an endpoint, and a predictor. See its README."""
