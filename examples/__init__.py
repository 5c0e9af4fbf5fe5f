"""Things to run and to copy; nothing imports them."""
