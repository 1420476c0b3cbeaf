"""The page to read single pairs in."""
