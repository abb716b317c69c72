"""The device side: what a bundle is, how an image becomes a tensor, how a model runs and is measured.

Standard library and numpy only, Python 3.10 to 3.12, and nothing else of this repository: a Jetson runs
this folder alone. Any further library is imported in the branch that needs it.
"""
