"""The group "adaptive" of ``jkoflow bench``: fields and adaptive solvers as other libraries' users have them today."""
