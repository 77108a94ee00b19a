"""The command `meshnode`: parse, call, print.

`main` assembles the commands; each other file holds one group of them. Commands talk to the
running daemon through `meshnode.client` and start fast: what a command does not need, it does not
import.
"""
