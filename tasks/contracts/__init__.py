"""What all rooms share: errors that a person can mend, values that travel between stages, how a training is set up."""
