"""Old Faithful: a mixture of two bivariate normals, by EM and by NUTS from one and the same function.

The geyser's eruptions come in two kinds, short ones after a short wait and long ones after a long wait. The model is
written as a Bayesian would write it; EM with ``prior=False`` drops the priors and gives maximum likelihood, NUTS keeps
them and samples.

Reference:
    Azzalini and Bowman (1990), A look at some data on the Old Faithful geyser, Applied Statistics 39:357-365 (data);
    Scrucca, Fop, Murphy and Raftery (2016), mclust 5, The R Journal 8:289-317 (model VVV with two components):
    log-likelihood -1130.264, weights 0.356 and 0.644, means (2.036, 54.479) and (4.290, 79.968).
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import emppl

published = {
    "weights": [0.356, 0.644],
    "mu": [[2.036, 54.479], [4.290, 79.968]],
    "log_likelihood": -1130.264,
}


def model(x, K=2):
    """A mixture of normals with free covariances.

    Args:
        x: eruption length and waiting time in minutes, ``(eruptions, 2)``.
        K: number of components.
    """
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(K)))
    with numpyro.plate("components", K):
        # Wide priors on the scale of the data: a kind of eruption is centred almost anywhere in the picture, and
        # the inverse Wishart is worth about five eruptions.
        mu = numpyro.sample("mu", dist.Normal(jnp.array([3.5, 70.0]), jnp.array([2.0, 30.0])).to_event(1))
        covariance = numpyro.sample("covariance", dist.InverseWishart(5.0, jnp.diag(jnp.array([0.5, 100.0]))))
    with numpyro.plate("eruptions", x.shape[0]):
        # NUTS wants to be told to sum over the latent; emppl does so anyway.
        z = numpyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        numpyro.sample("x", dist.MultivariateNormal(mu[z], covariance_matrix=covariance[z]), obs=x)


def data() -> np.ndarray:
    """Length of 272 eruptions and the wait before the next one, in minutes, ``(272, 2)``."""
    return np.loadtxt(pathlib.Path(__file__).parent / "data" / "faithful.csv", delimiter=",", skiprows=1)


def picture(x, result: emppl.EMResult, path: pathlib.Path) -> None:
    """Draw the data, coloured by responsibility, and every component's 50 and 95 per cent ellipses.

    Args:
        x: the data.
        result: a fit with two components.
        path: file to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    points = axes.scatter(*x.T, c=result.posterior("z")[:, 1], cmap="coolwarm", s=14)
    figure.colorbar(points, label="P(second component)")
    angle = np.linspace(0, 2 * np.pi, 200)
    circle = np.stack([np.cos(angle), np.sin(angle)])
    for mean, covariance in zip(result.params["mu"], result.params["covariance"], strict=True):
        for mass in (0.5, 0.95):
            # The squared radius of a bivariate normal is exponential with mean 2.
            radius = np.sqrt(-2 * np.log(1 - mass))
            outline = np.asarray(mean)[:, None] + radius * np.linalg.cholesky(covariance) @ circle
            axes.plot(*outline, color="black", lw=1)
    axes.set(xlabel="eruption (minutes)", ylabel="waiting time (minutes)", title="Old Faithful, two components by EM")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def sample(x, params, num_warmup: int, num_samples: int) -> numpyro.infer.MCMC:
    """NUTS on the model as it stands, priors included, started at the EM estimate."""
    kernel = numpyro.infer.NUTS(model, init_strategy=numpyro.infer.init_to_value(values=dict(params)))
    mcmc = numpyro.infer.MCMC(kernel, num_warmup=num_warmup, num_samples=num_samples, progress_bar=False)
    mcmc.run(jax.random.key(1), x)
    return mcmc


def main(path: str = "out/old_faithful.png", num_warmup: int = 300, num_samples: int = 300) -> None:
    """Fit, print the answer beside the published one, draw it, and compare it with NUTS.

    Args:
        path: where to write the picture.
        num_warmup: warm-up draws of NUTS.
        num_samples: draws of NUTS.
    """
    jax.config.update("jax_enable_x64", True)
    x = data()
    em = emppl.EM(model, prior=False, restarts=20)
    print(em.plan(x))
    result = em.run(jax.random.key(0), x)
    result.print_summary()
    print("published:", published)
    picture(x, result, pathlib.Path(path))
    print(f"picture: {path}\n")
    print(emppl.compare(result, sample(x, result.params, num_warmup, num_samples)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("path", nargs="?", default="out/old_faithful.png", help="where to write the picture")
    main(parser.parse_args().path)
