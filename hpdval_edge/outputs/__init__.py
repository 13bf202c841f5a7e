"""Where results go: text on stdout, pictures, films, messages, all as an `Output`."""
