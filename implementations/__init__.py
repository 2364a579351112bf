"""What is verified and timed: one file per implementation, each readable alone. Adding one edits no other file."""
