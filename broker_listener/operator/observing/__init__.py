"""What ``knime-peruser observe`` learns of a KNIME installation's messages."""
