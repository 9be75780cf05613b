"""What a problem means, one module each, of the functions of ``tasks.ml.problem.Problem``."""
