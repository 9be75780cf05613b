"""What a difference is worth: intervals, paired tests, corrections for many of them. Knows arrays alone."""
