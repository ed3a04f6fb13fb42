"""The fit: data checked, starting values, compiled blocks of iterations, convergence, how it ended."""
