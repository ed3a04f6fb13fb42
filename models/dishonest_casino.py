"""The occasionally dishonest casino: a hidden Markov model of symbols, which die was rolled?

A casino switches now and then from a fair die to a loaded one. From 300 rolls alone, Baum-Welch finds both dice and how
often they are exchanged.

Reference:
    Durbin, Eddy, Krogh and Mitchison (1998), Biological Sequence Analysis, section 3.2 (the rolls) and 3.3 (the dice
    that rolled them: the loaded one shows six every other time; it comes with probability 0.05 and goes with 0.1).
    300 rolls say little about two dice; what is checked is Baum-Welch by another program from the same start.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints

import emppl

# The casino's own values, which the book gives.
published = {
    "transition": [[0.95, 0.05], [0.1, 0.9]],
    "faces": [[1 / 6] * 6, [0.1] * 5 + [0.5]],
}


def model(rolls):
    """Every roll is made with one of two dice.

    Args:
        rolls: face shown, counted from zero, ``(rolls,)``.
    """
    loaded = jnp.array([0.1, 0.1, 0.1, 0.1, 0.1, 0.5])
    initial = numpyro.param("initial", jnp.array([0.5, 0.5]), constraint=constraints.simplex)
    transition = numpyro.param("transition", jnp.array([[0.9, 0.1], [0.1, 0.9]]), constraint=constraints.simplex)
    faces = numpyro.param("faces", jnp.stack([jnp.full(6, 1 / 6), loaded]), constraint=constraints.simplex)

    def roll(carry, face):
        before, number = carry
        die = numpyro.sample("die", dist.Categorical(jnp.where(number == 0, initial, transition[before])))
        numpyro.sample("rolls", dist.Categorical(faces[die]), obs=face)
        return (die, number + 1), None

    scan(roll, (0, 0), rolls)


def data() -> np.ndarray:
    """The 300 rolls, faces counted from zero."""
    text = """
        315116246446644245311321631164152133625144543631656626566666
        651166453132651245636664631636663162326455236266666625151631
        222555441666566563564324364131513465146353411126414626253356
        366163666466232534413661661163252562462255265252266435353336
        233121625364414432335163243633665562466662632666612355245242
        """
    return np.array([int(face) - 1 for face in "".join(text.split())])


def main() -> None:
    """Fit and print the answer beside the casino's own dice."""
    jax.config.update("jax_enable_x64", True)
    em = emppl.EM(model)
    print(em.plan(data()))
    result = em.run(jax.random.key(0), data())
    result.print_summary()
    print("the dice that were rolled:", published)
    print("most probable dice:", "".join("FL"[die] for die in result.decode()["die"]))


if __name__ == "__main__":
    main()
