"""Processes that compute together: which there are, who holds which part, what they share in memory."""
