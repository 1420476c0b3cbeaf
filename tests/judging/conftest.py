"""Every test here searches what it leaves behind for the key."""

from hidden_key import key_stays_hidden

__all__ = ["key_stays_hidden"]
