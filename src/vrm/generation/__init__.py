"""How policies answer: one interface, two engines."""
