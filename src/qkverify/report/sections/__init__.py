"""The parts of the page, one file each; `page` says what a section must have."""
