"""How each contestant is used: one module each, run in an environment of its own; see `base`.

These modules may import the standard library, each other, and the one package that they measure.
"""
