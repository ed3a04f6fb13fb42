"""The table of closed forms, split by the support of the data. Importing this package registers them."""

from emppl.closed_forms import bounded, counts, discrete, gaussian, locations, positive  # noqa: F401
