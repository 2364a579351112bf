"""One file for each command, of its name; `qkverify --help` lists them in the order of `help_texts.COMMANDS`."""
