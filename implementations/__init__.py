"""What is verified and timed: one file per implementation. Adding one edits no other."""
