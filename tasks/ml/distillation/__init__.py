"""A student learns from a teacher: what is asked, what is kept, which losses compare them."""
