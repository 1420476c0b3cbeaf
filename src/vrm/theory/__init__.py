"""What can be proved about a variational reward model; docs/theory.md says what that is worth."""
