"""Derivatives by central differences, of functions written by hand."""

import numpy as np


def numerical_hessian(function, at, step):
    """Second derivatives of a function of a vector."""
    unit, signs = np.eye(len(at)) * step, (1, -1)
    corners = [[sum(s * t * function(at + s * u + t * v) for s in signs for t in signs) for v in unit] for u in unit]
    return np.array(corners) / (4 * step**2)


def numerical_errors(log_likelihood, at, step=1e-4):
    """Standard errors: the inverse of minus the Hessian of a log-likelihood."""
    return np.sqrt(np.diag(np.linalg.inv(-numerical_hessian(log_likelihood, at, step))))
