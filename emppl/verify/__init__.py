"""The check of a derived algorithm against NumPyro's own density of the model."""
