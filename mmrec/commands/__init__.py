"""One function a command: it reads the words, calls one function and prints its result."""
