"""What a person types and sees.

Every room is open to this one, and none may use it. `main` is the entry point; `commands/` has a file for each command, `options`
what several of them take, and the `console` files what they print.
"""
