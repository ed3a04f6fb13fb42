"""Accuracy of an estimate: local coordinates, observed information, boundaries, corners, identification."""
