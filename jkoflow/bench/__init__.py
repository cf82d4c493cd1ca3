"""How fast the kernels are beside everything else that integrates the same velocity: what ``jkoflow bench`` runs."""
