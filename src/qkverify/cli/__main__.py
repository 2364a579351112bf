"""`python -m qkverify.cli`."""

from qkverify.cli.main import main

if __name__ == "__main__":
    main()
