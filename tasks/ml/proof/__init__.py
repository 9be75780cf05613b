"""What is concluded from measurements: about a graph, a class, a race of two models, a technique."""
