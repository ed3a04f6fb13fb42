"""The file of a fit in progress, and what a fit depends on."""
