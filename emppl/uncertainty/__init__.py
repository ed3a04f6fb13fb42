"""What the log-likelihood says around an estimate: coordinates, observed information, where there is none, criteria."""
