"""The privileged side: takes one narrow request, validates it against the host, starts an executor as its user.

Everything here but ``gate.py`` runs as uid 0, with ``protocol``, the standard library and pylibacl, nothing else.
"""
