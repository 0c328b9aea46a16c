"""Keys and what they seal: the key ring, and sealed values bound to their place in the database."""
