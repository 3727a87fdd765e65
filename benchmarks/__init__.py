"""How quick the program is and what it takes, measured by scripts that anyone can run."""
