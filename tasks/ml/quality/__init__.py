"""How good a model's answers are on a split, by class and row by row. Knows how to compute, and not how to learn."""
