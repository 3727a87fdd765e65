"""What is owed to hosts: their rules, their turns, their reservations."""
