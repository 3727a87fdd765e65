"""What was tried to find out, as scripts that anyone can repeat; each writes its page in docs/."""
