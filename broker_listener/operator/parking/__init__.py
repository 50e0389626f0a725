"""Parts of ``knime-peruser parked``: what a parked message says, the way through the queue, and how it is shown."""
