"""`python -m cdbench` is `cdbench`."""

from cdbench.cli import main

if __name__ == "__main__":
    main()
