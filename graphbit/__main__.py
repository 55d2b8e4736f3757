"""`python -m graphbit` is the command `graphbit`."""

from graphbit.cli import main

main()
