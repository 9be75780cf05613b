"""How weights are learned: the loop, and what makes it fast, small, exact and resumable."""
