"""What may be set: one definition of a field is its flag, its parameter, its search range and its JSON."""
