"""Drop-in replacements for what other libraries offer: one module for each of them, which imports it when asked for.

A module speaks its library's own interface, so that a program changes an import and keeps its code. The library itself
is never installed with this package: who changes an import has it already.
"""
