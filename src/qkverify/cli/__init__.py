"""What a person types and sees.

Every room is open to this one, and none may use it. `main` is the entry point; one file holds each large command.
"""
