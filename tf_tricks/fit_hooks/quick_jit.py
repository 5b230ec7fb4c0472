"""JAX's compilation of what is to run a few times."""

from tf_tricks._backend import jax


def jit_quickly(function):
    """`jax.jit` for a function that runs a few times: LLVM takes longer to optimise it than it takes unoptimised."""
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(function, compiler_options=options if jax.default_backend() == "cpu" else None)
