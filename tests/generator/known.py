"""What the grammar can write and emppl does not get right yet: left out of the tests, by feature, with the reason."""

KNOWN = {
    "latent across cells": "array operations on a discrete latent see its states in place of its plate",
    "across cells after an index": "the same after an index: mu[z] - mu[z].mean()",
    "index of an unplated latent first": "a[z][w] indexes the states of z: in enumeration only a[z, w] is right",
    "Laplace prior": "Newton steps stop beside the corner of a Laplace prior, with other entries away from the maximum",
}
