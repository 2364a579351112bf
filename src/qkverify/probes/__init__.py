"""Finding out, by calls small enough to be read, what nobody declared."""
