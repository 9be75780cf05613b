"""The serving bundle: what is in it, and the code that answers from it. Knows neither torch nor transformers."""
