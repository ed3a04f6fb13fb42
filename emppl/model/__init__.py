"""Static facts of a model: its named axes, sites and their forms, roles, integrals."""
