"""What is owed to hosts: their rules, their slots, their reservations."""
