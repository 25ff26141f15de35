"""A member's rights: consent, a copy of everything held on them, its erasure."""
