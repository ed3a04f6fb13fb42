"""What a user reads after a fit: the result, its uncertainty, criteria, tables, and the comparison with NUTS."""
