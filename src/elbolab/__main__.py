"""`python -m elbolab` is the command `elbolab`."""

from elbolab.cli import main

if __name__ == "__main__":
    main()
