"""`python -m snt`, and `torchrun -m snt`: the command line."""

from snt.cli import main

main()
