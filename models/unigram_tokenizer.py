"""A unigram tokenizer: pieces of words and their probabilities, from text without a single segmentation.

A word is a row of pieces, drawn one by one: first a length, then one of the pieces of that length, which together is
one distribution over all pieces. The text shows where words end but not where pieces do. Every piece lasts as long as
it has letters: a semi-Markov chain, written as a Markov chain whose states are (length, letters so far). Inside a piece
the chain has no choice: nearly all of the transitions are structural zeros. Where a piece begins, the text itself says
which one it is, for every length that it may have.

Reference:
    Kudo (2018), Subword regularization: improving neural network translation models with multiple subword candidates,
    Proc. ACL 56:66-75, section 3.2 (the model and EM); the nursery rhyme was printed in Peter Piper's Practical
    Principles of Plain and Perfect Pronunciation (1813). No published fit: the known answer is that of EM on the
    lattice of segmentations, written by hand.
"""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints

import emppl

TEXT = """
    peter piper picked a peck of pickled peppers a peck of pickled peppers peter piper picked if
    peter piper picked a peck of pickled peppers wheres the peck of pickled peppers peter piper picked
"""

known = {"log_likelihood": -167.03846}


def model(pieces, known_pieces, sizes):
    """Letters in words, each of them part of a piece.

    Args:
        pieces: number, among those of its length, of the piece that begins at each letter, ``(letters, lengths)``.
        known_pieces: is there such a piece inside the word? Same shape.
        sizes: how many pieces of every length there are.
    """
    longest = len(sizes)
    # The first states begin a piece of every length; the others follow inside it.
    states = [(length, 0) for length in range(longest)]
    states += [(length, place) for length in range(longest) for place in range(1, length + 1)]
    ends = jnp.array([place == length for length, place in states])
    follows = jnp.array([[other == (length, place + 1) for other in states] for length, place in states], float)
    lengths = numpyro.param("lengths", jnp.full(longest, 1 / longest), constraint=constraints.simplex)
    tables = [
        numpyro.param(f"pieces_{length + 1}", jnp.full(size, 1 / size), constraint=constraints.simplex)
        for length, size in enumerate(sizes)
    ]
    begin = jnp.concatenate([lengths, jnp.zeros(len(states) - longest)])

    def letter(carry, data):
        before, number = carry
        numbers, exist = data
        starts = (number == 0) | ends[before]
        state = numpyro.sample("state", dist.Categorical(jnp.where(starts[..., None], begin, follows[before])))
        possible = jnp.concatenate([exist, jnp.ones(len(states) - longest)])
        numpyro.sample("possible", dist.Bernoulli(possible[state]), obs=1)
        for length, table in enumerate(tables):
            # Where no piece of this length begins, what is seen says nothing: it had probability one.
            certain = jnp.eye(len(table))[numbers[length]]
            probs = jnp.where((state == length)[..., None], table, certain)
            numpyro.sample(f"piece_{length + 1}", dist.Categorical(probs), obs=numbers[length])
        return (state, number + 1), None

    scan(letter, (0, 0), (pieces, known_pieces))


def candidates(words, longest=4, least=4) -> list[list[str]]:
    """Of every length: all letters, and all longer strings that occur often enough in the words."""
    found = []
    for length in range(1, longest + 1):
        counts = collections.Counter(word[i : i + length] for word in words for i in range(len(word) + 1 - length))
        found.append(sorted(piece for piece, count in counts.items() if length == 1 or count >= least))
    return found


def data() -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """Pieces that begin at each letter of the text, which of them exist, and how many pieces there are."""
    vocabulary = candidates(TEXT.split())
    numbers = [{piece: number for number, piece in enumerate(pieces)} for pieces in vocabulary]
    rows = [
        [table.get(word[place : place + length], -1) for length, table in enumerate(numbers, 1)]
        for word in TEXT.split()
        for place in range(len(word))
    ]
    # Past the end of a word a string is too short to be among those of its length.
    found = np.array(rows)
    return np.maximum(found, 0), (found >= 0).astype(float), tuple(len(pieces) for pieces in vocabulary)


def probabilities(params) -> dict[str, float]:
    """Probability of every piece."""
    vocabulary = candidates(TEXT.split())
    return {
        piece: float(params["lengths"][length] * params[f"pieces_{length + 1}"][number])
        for length, pieces in enumerate(vocabulary)
        for number, piece in enumerate(pieces)
    }


def segmentation(result: emppl.EMResult) -> str:
    """The most probable pieces, separated by bars, and words by spaces."""
    starts = iter(np.asarray(result.decode()["state"]) < len(candidates(TEXT.split())))
    words = ("".join("|" * bool(next(starts)) + letter for letter in word) for word in TEXT.split())
    return " ".join(word.lstrip("|") for word in words)


def main() -> None:
    """Fit, print the answer beside the known one, and the text in pieces."""
    jax.config.update("jax_enable_x64", True)
    em = emppl.EM(model)
    print(em.plan(*data()))
    result = em.run(jax.random.key(0), *data())
    found = probabilities(result.params)
    print({piece: round(found[piece], 4) for piece in sorted(found, key=lambda piece: -found[piece])[:20]})
    print("log-likelihood:", result.log_likelihood, "known:", known)
    print(segmentation(result))


if __name__ == "__main__":
    main()
