"""IBM Model 1: word alignment, and with it a dictionary, from sentences that translate each other.

Each English word is the translation of one word of the foreign sentence, and nothing says which. The translation
table t(english | foreign) starts uniform; EM finds that "das" means "the" because they meet twice.

Reference:
    Brown, Della Pietra, Della Pietra and Mercer (1993), The mathematics of statistical machine translation,
    Computational Linguistics 19:263-311; the corpus is figure 4.4 of Koehn (2010), Statistical Machine Translation,
    where t(the | das) is 0.5, 0.6364 and 0.7479 after one, two and three iterations, with limit 1.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

import emppl

CORPUS = (("das Haus", "the house"), ("das Buch", "the book"), ("ein Buch", "a book"))
FOREIGN = ("Buch", "Haus", "das", "ein")
ENGLISH = ("a", "book", "house", "the")

published = {1: 0.5, 2: 0.6364, 3: 0.7479}


def model(english, foreign):
    """English words, each aligned to a hidden word of the foreign sentence.

    All sentences of a side have one length here; shorter ones would be padded, their words masked with
    ``numpyro.handlers.mask`` and the alignment probabilities of padding set to zero.

    Args:
        english: numbers of the English words, ``(sentences, words)``.
        foreign: numbers of the foreign words, ``(sentences, foreign words)``.
    """
    sentences, words = english.shape
    uniform = jnp.full((len(FOREIGN), len(ENGLISH)), 1 / len(ENGLISH))
    translation = numpyro.param("translation", uniform, constraint=constraints.simplex)
    with numpyro.plate("sentences", sentences, dim=-2), numpyro.plate("words", words, dim=-1):
        choices = foreign.shape[1]
        alignment = numpyro.sample("alignment", dist.Categorical(jnp.full(choices, 1 / choices)))
        source = jnp.asarray(foreign)[jnp.arange(sentences)[:, None], alignment]
        numpyro.sample("english", dist.Categorical(translation[source]), obs=english)


def data() -> tuple[np.ndarray, np.ndarray]:
    """The three sentence pairs as word numbers: English, then foreign."""
    english = np.array([[ENGLISH.index(word) for word in pair[1].split()] for pair in CORPUS])
    foreign = np.array([[FOREIGN.index(word) for word in pair[0].split()] for pair in CORPUS])
    return english, foreign


def main() -> None:
    """Iterate by hand, as the book does: the pieces of EM are functions."""
    jax.config.update("jax_enable_x64", True)
    english, foreign = data()
    em = emppl.EM(model)
    print(em.plan(english, foreign))
    params = {"translation": jnp.full((4, 4), 0.25)}
    for iteration in range(1, 11):
        params = em.m_step(params, em.e_step(params, english, foreign), english, foreign)
        known = f"(published {published[iteration]})" if iteration in published else ""
        print(f"iteration {iteration:2d}: t(the | das) = {params['translation'][2, 3]:.4f} {known}")
    print("\nt(english | foreign)" + "".join(f"{word:>8}" for word in ENGLISH))
    for word, row in zip(FOREIGN, params["translation"], strict=True):
        print(f"{word:>20}" + "".join(f"{probability:8.4f}" for probability in row))


if __name__ == "__main__":
    main()
