"""The training of a network: model, optimiser, loop, strategy, checkpoint, metrics.

`run` tells the story; each other file is one of its words. Knows nothing of compression or devices.
"""
