"""The side of JAX with diffrax, solves compiled with jax.jit."""

import platform

import common
import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import worker

METHODS = {"dopri5": diffrax.Dopri5, "tsit5": diffrax.Tsit5, "bosh3": diffrax.Bosh3}


def describe():
    return {
        "name": f"jax {jax.__version__}, diffrax {diffrax.__version__}",
        "device": f"{jax.devices()[0].platform} on {platform.machine()}",
        "blas": "XLA",
    }


def solver(path, n, times, method, rtol):
    layers = [(jnp.array(w.T), jnp.array(b)) for w, b in common.load(path)]
    x0 = jnp.array(common.points(len(layers[-1][1]), n))

    def field(t, x, layers):
        x = jnp.concatenate([x, jnp.full((len(x), 1), t, x.dtype)], -1)
        for w, b in layers[:-1]:
            x = jax.nn.silu(x @ w + b)
        return x @ layers[-1][0] + layers[-1][1]

    @jax.jit
    def solve(x0, layers):
        return diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            METHODS[method](),
            0.0,
            1.0,
            None,
            x0,
            layers,
            saveat=diffrax.SaveAt(ts=jnp.linspace(0, 1, times)),
            stepsize_controller=diffrax.PIDController(rtol=rtol, atol=rtol),
            max_steps=10_000,
        )

    return lambda: jax.block_until_ready(solve(x0, layers))


def solve(path, n, times, method, rtol=1e-4):
    run = solver(path, n, times, method, rtol)
    return run, lambda: np.array(run().ys[-1][:16]).ravel().tolist()


def ends(path, n, times, method, rtol=1e-4):
    run = solver(path, n, times, method, rtol)
    return run, lambda: np.array(run().ys[-1]).ravel().tolist()


def evaluations(path, n, times, method, rtol=1e-4):
    run = solver(path, n, times, method, rtol)

    def check():
        # Two of the first step's choice, one at the start, and the later stages of each step.
        steps = int(run().stats["num_steps"])
        return [2 + steps * (METHODS[method].tableau.num_stages - 1)]

    return check, check


CASES = {"solve": solve, "ends": ends, "evaluations_solve": evaluations}

if __name__ == "__main__":
    worker.serve(CASES, describe, METHODS)
