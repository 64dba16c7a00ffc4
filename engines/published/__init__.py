"""Published models: the files that training writes and the server reads."""
