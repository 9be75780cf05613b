"""The servers of one machine, the deployments on them, and what is left of those that died."""
