"""The command ``knime-peruser``: what operators, administrators and auditors ask and do; one file a subcommand."""
