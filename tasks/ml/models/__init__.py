"""Encoders as modules: which architectures there are, how checkpoints are read and written, how their parts are parted
and taken out. Knows no data.
"""
