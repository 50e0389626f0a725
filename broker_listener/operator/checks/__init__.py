"""The questions of ``knime-peruser check``, one file a subject; each a function that yields what it found."""
