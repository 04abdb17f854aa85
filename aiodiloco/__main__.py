"""`python -m aiodiloco`: the command line."""

from aiodiloco.cli import main

if __name__ == "__main__":
    main()
