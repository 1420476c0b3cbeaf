"""`python -m vrm`: the same as the `vrm` command, for environments where the package is not installed."""

from vrm import warm

if __name__ == "__main__":
    warm.enter()
    from vrm.cli import main

    warm.leave(main())
