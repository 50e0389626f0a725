"""What the predecessor, the per-user executor starter for KNIME, left on a host: its configuration and workspaces."""
