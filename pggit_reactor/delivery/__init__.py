"""One attempt: to judged addresses only, verified, signed, bounded, with an outcome whatever happens."""
