"""The joint probability of several discrete columns, exactly normalised, given conditioning variables or none."""

from jkoflow.masses.joint import Masses

__all__ = ["Masses"]
