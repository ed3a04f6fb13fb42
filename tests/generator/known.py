"""What the grammar can write and the tests leave out, by feature, with the reason."""

KNOWN = {
    "latent across cells": "refused in words, by tests of their own: sites that read a latent across its plate",
    "across cells after an index": "the same after an index: mu[z] - mu[z].mean()",
    "index of an unplated latent first": "refused in words: a[z][w] indexes the states of z; a[z, w] is read rightly",
    "Laplace prior": "not right yet: Newton steps stop beside the corner of a Laplace prior, with other entries away from "
    "the maximum",
}
