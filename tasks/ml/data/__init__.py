"""From files of people to batches: read, judged, split, tokenized, augmented. Knows tokenizers, and nothing of
training.
"""
