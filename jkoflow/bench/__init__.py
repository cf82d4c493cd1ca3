"""The benchmark of ``jkoflow bench``: the kernels beside everything else that integrates the same velocity."""
