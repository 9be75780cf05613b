"""What is cut away, whole or to zero, and how its importance is known."""
