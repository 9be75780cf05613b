"""Weights and activations in fewer bits: the simulation, and the methods that choose scales and codes."""
