"""`python -m kingtask`: the same as the command `kingtask`."""

from kingtask.cli.main import main

if __name__ == "__main__":
    main()
