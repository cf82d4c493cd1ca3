"""Compares flows at a fixed budget of time; `docs/comparison.md` tells the protocol.

python benchmarks/compare.py tune rose gasturbine --budget 20 --write
python benchmarks/compare.py run rose checkerboard gasturbine FILE.npz --seeds 3 --budget 60 --out runs/comparison
python benchmarks/compare.py table runs/comparison
"""

from fixed_budget.cli import main

if __name__ == "__main__":
    main()
