"""The steps: one module per stage, and the machinery that makes a function a stage."""
