"""What a family of distributions says about itself, the registry, and the registered ones, split by support."""

from emppl.families import bounded, counts, discrete, gaussian, locations, multivariate, positive  # noqa: F401  registers them
from emppl.families.family import Family, Update
from emppl.families.registry import family_of, register, registered_families

__all__ = ["Family", "Update", "family_of", "register", "registered_families"]
