"""Laws of attention as servers call it, one file for each layout; `serving` is what they share."""
