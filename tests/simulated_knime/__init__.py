"""The two ends of KNIME that the daemons stand between: the server's, and an executor program named ``knime``."""
