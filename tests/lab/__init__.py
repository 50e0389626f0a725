"""The ground that tests and quickstart stand on: packages, accounts, a private broker, an installation, the daemons.

Standard library only, since it runs before anything else is installed. It works as root on the real host, so each
part takes back what it made and touches nothing that it did not make.
"""
